"""Edit one region of a picture by its codes or latents.

A region is a mask of pixels `[H, W]`. A position of the code grid is edited if half or more of its cell of pixels lies
in the region; all other codes stay. The pixels that an edited code can change are found exactly, by one pass of the
decoder with NaN in its place. Compared are the decoded codes before and after. A model without codes is edited in its
latents, so that both can be compared.
"""
