"""`tessella edit`.

Imports beside it: report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from tessella.commands.shared import Shown, Where, inputs, loaded, loaded_without_prior, progress, say
from tessella.core.outputs import Sampling
from tessella.foundation.errors import DataError, SpecError
from tessella.foundation.notes import note
from tessella.foundation.text import json_text

if TYPE_CHECKING:
    from tessella.core.batches import Batch
    from tessella.models.base import Model
    from tessella.tasks.edit import Edited, Operation
    from tessella.training.run import Run

VERSION, VARIANTS = 1, 8
FILLS_ANY_ORDER = "masked"
PLACED = re.compile(r"(.+)@(-?\d+),(-?\d+)")


@dataclass(frozen=True)
class Edit:
    """Change one part of a picture by its codes, and see how far the change reaches. All other codes stay.

    Give a region, by --region or --mask, and one operation: --resample, --paste, --code or --blend. OUT gets the
    edited pictures, sheet.png (before, after, difference), edit.json (which codes changed, and how far the change
    reached) and edit.html. Of a model without codes z is edited.

    Attributes:
        run: the run folder.
        picture: a picture file, or the number of an example of the split.
        out: the folder to write into.
        region: x,y,width,height in pixels of the picture as the model sees it.
        mask: a picture of that size that is white in the region.
        level: of a model with several levels of codes, edit this one alone; 0 is the coarsest.
        resample: draw the region anew, given everything around it, from the prior over the codes.
        count: how many variants to draw; 8 unless given.
        paste: take the codes of another picture, from the same place, or with OTHER@x,y from there.
        code: set every code of the region to this number.
        blend: OTHER and a number from 0 to 1: mix with another picture by so much.
        keep_pixels: outside the region keep the picture's own pixels; the edit is let in over a narrow ring.
        full_size: leave picture files the size that they have, instead of fitting them to the size trained on.
        prior: to resample with; by default the masked one, which looks at all that is around, or else the best fitted.
        temperature: of --resample; below 1 what is drawn is more typical.
        top_k: of --resample, draw each code from its k likeliest values only.
        top_p: of --resample, draw each from the likeliest values that hold this share of the probability only.
        seed: of what is drawn.
    """

    run: Positional[str]
    picture: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "edited"
    region: str | None = None
    mask: str | None = None
    level: int | None = None
    resample: bool = False
    count: Annotated[int | None, arg(aliases=("-n",))] = None
    paste: str | None = None
    code: int | None = None
    blend: tuple[str, float] | None = None
    keep_pixels: bool = False
    full_size: bool = False
    prior: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    shown: Annotated[Shown, arg(name="")] = field(default_factory=Shown)
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def edit(o: Edit) -> int:
    box = _checked(o)
    sampling = Sampling(o.temperature, o.top_k, o.top_p)
    prior = o.prior or _filling(o.run)
    model, run = loaded(o.run, prior, o.where) if o.resample else loaded_without_prior(o.run, o.where)
    from tessella.tasks import edit as editing

    read = partial(_picture, model, run, o)
    batch = read(o.picture)
    x, size = batch.x[0], tuple(batch.x.shape[2:])
    if not model.schema.is_picture:
        raise SpecError(f"the model {model.name} is of vectors: only pictures have regions to edit")
    region = editing.box(*box, size) if o.mask is None else editing.read_mask(o.mask, size)
    operation, what = _operation(o, read, sampling)
    if o.resample:
        _note_of_the_prior(model, o.run)
    with progress("drawing") as tell:
        options: dict[str, Any] = {"level": o.level, "label": batch.label, "seed": o.seed, "progress": tell}
        edited = editing.edit(model, x, region, operation, **options, keep_pixels=o.keep_pixels)
    what += f", in level {o.level}" if o.level is not None else ""
    what += "; the pixels outside are the picture's own" if o.keep_pixels else ""
    _write(Path(o.out), model, edited, o, what)
    return 0


def _checked(o: Edit) -> tuple[int, int, int, int]:
    """The region's numbers; zeros if there is a mask. What can be refused before anything is read is refused here."""
    asked = [name for name in ("resample", "paste", "code", "blend") if getattr(o, name) not in (None, False)]
    if len(asked) != 1:
        wrong = f"{' and '.join(f'--{name}' for name in asked)} are given" if asked else "nothing to do is given"
        raise SpecError(f"{wrong}: give one of --resample, --paste OTHER, --code K and --blend OTHER A")
    if (o.region is None) == (o.mask is None):
        raise SpecError("say where by one of --region x,y,width,height and --mask PICTURE")
    if not o.resample and (o.count is not None or o.prior is not None):
        raise SpecError("-n and --prior are of --resample: leave them out")
    if os.path.exists(o.out) and not os.path.isdir(o.out):
        raise DataError(f"{o.out} is no folder: give one to write into")
    if o.region is None:
        return 0, 0, 0, 0
    found = re.fullmatch(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*", o.region)
    if not found:
        raise SpecError(f"the region {o.region!r} is not of the form x,y,width,height: give four whole numbers")
    x, y, width, height = map(int, found.groups())
    return x, y, width, height


def _filling(run: str) -> str | None:
    """The prior that fills best, if it was fitted on the weights as they are."""
    from tessella.training.checkpoint import MODEL, fingerprint
    from tessella.training.fitted_priors import prior_home, read_prior_spec

    home = prior_home(Path(run), FILLS_ANY_ORDER)
    if not (home / MODEL).is_file():
        return None
    return FILLS_ANY_ORDER if read_prior_spec(home).codes == fingerprint(run) else None


def _picture(model: Model, run: Run, o: Edit, given: str) -> Batch:
    """One picture, `[1, C, H, W]`."""
    if not o.full_size or not os.path.isfile(given):
        return inputs(model, run, (given,), o.shown)
    from tessella.core.batches import Batch
    from tessella.data.folders.read import look as look_at
    from tessella.data.inputs import read_pictures

    fitted = inputs(model, run, (given,), o.shown)
    header = look_at(given)
    if header.trouble:
        raise DataError(f"{given} cannot be read: {header.trouble}")
    return Batch(read_pictures(model.schema, (given,), header.size), fitted.label)


def _operation(o: Edit, read: Callable[[str], Batch], sampling: Sampling) -> tuple[Operation, str]:
    """What is asked for, and in words."""
    from tessella.tasks.edit import Blend, Code, Paste, Resample

    if o.paste is not None:
        placed = None if os.path.isfile(o.paste) else PLACED.fullmatch(o.paste)
        if placed is None:
            return Paste(read(o.paste).x[0]), f"The region has the codes of {o.paste}"
        other, at = placed[1], (int(placed[2]), int(placed[3]))
        return Paste(read(other).x[0], at), f"The region has the codes of {other} from {at[0]},{at[1]} on"
    if o.code is not None:
        return Code(o.code), f"Every code of the region is {o.code}"
    if o.blend is not None:
        return Blend(read(o.blend[0]).x[0], o.blend[1]), f"The region is {100 * o.blend[1]:g} % {o.blend[0]}"
    return Resample(VARIANTS if o.count is None else o.count, sampling), "The region is drawn anew"


def _note_of_the_prior(model: Model, run: str) -> None:
    """Say what the prior does not look at, and what would."""
    from tessella.models.codes import CodeModel

    if not isinstance(model, CodeModel):
        return
    remedy = f"tessella prior {run} --kind {FILLS_ANY_ORDER} fits one that looks at everything around"
    if not model.fitted:
        note(f"no prior is fitted, so every code is drawn as likely as any other: {remedy}")
    elif not all(prior.any_order for prior in model.priors):
        note(
            "this prior looks at the codes before each alone, in raster order: what lies right of the region and below "
            f"it has no say; {remedy}"
        )


def _write(out: Path, model: Model, edited: Edited, o: Edit, what: str) -> None:
    """The pictures, the sheet, the record and the page."""
    from tessella.foundation.output_folder import Outputs
    from tessella.kinds import pictures
    from tessella.pages import edited as page
    from tessella.training.checkpoint import fingerprint

    names = [f"edited-{n + 1}.png" for n in range(len(edited.result))] if o.resample else ["edited.png"]
    images = [pictures.grid(x[None], model.schema, columns=1, scale=1) for x in edited.result]
    record = {"version": VERSION, "model": fingerprint(o.run), "picture": o.picture, "operation": what}
    record |= {"seed": o.seed, "keep_pixels": o.keep_pixels, "files": names, **edited.to_json()}
    text = json_text(record, indent=1)
    called = os.path.basename(o.picture) if os.path.isfile(o.picture) else f"Example {o.picture} of {o.shown.split}"
    every = [*zip(names, images, strict=True), ("sheet.png", page.sheet(edited, model.schema))]
    with Outputs(str(out), [*names, "sheet.png", "edit.json", "edit.html"], "", overwrite=True) as outputs:
        for name, image in every:
            outputs.write(name, lambda draft, image=image: image.save(draft, format="PNG"))
        outputs.write("edit.json", lambda draft: draft.write_text(text, "utf-8"))
        outputs.write("edit.html", lambda draft: page.write(draft, edited, model.schema, called, f"{what}."))
    say(f"wrote {out}: {', '.join(names[:1])}{f' to {names[-1]}' * (len(names) > 1)}, sheet.png, edit.json, edit.html")
    if edited.levels:
        changed = sum(len(edited.changed(n)) for n in range(len(names))) / len(names)
        say(f"codes    {changed:,.4g} of {sum(v.before.numel() for v in edited.levels):,} changed")
    shares = [100 * float(edited.share_outside(where).mean()) for where in (edited.cells, edited.reach)]
    say(f"change   {shares[0]:.3g} % of it outside the edited cells, {shares[1]:.3g} % beyond the decoder's reach")
