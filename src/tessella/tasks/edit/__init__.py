"""Task `edit`: changes one region of a picture or signal by its codes, and measures how far the change reaches.

A position of the code grid is edited if at least half of its cell lies in the region; all other codes stay. The decoded
examples before and after are compared. A model without codes is edited in its latents, so that both can be compared. A
model whose decoder takes the label can also decode the same codes as another class.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, final

from tyro.conf import Positional, arg

from tessella.core.outputs import Sampling
from tessella.foundation.blocks import Page
from tessella.foundation.errors import DataError, SpecError, option, task_name
from tessella.foundation.notes import note
from tessella.foundation.text import json_text
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from torch import Tensor

    from tessella.core.batches import Batch
    from tessella.core.schema import Schema
    from tessella.models.base import Model
    from tessella.models.codes import CodeModel
    from tessella.tasks.edit.operations import Operation
    from tessella.tasks.edit.result import Edited
    from tessella.training.run import Run


VERSION, VARIANTS = 2, 8
OPERATIONS = ("resample", "paste", "code", "blend")
SECONDS = re.compile(r"\s*\d*\.?\d+\s*:\s*\d*\.?\d+\s*")
PLACED = re.compile(r"(.+)@(-?\d+(?:,-?\d+)?)")


@dataclass(frozen=True)
class EditConfig:
    """Change one region of an example by its codes, and measure how far the change reaches. All other codes stay.

    Give a region, by `region`, `seconds` or `mask`, and one operation: `resample`, `paste`, `code` or `blend`. Without
    one, `label` decodes the same codes as another class, in the region or everywhere. The output folder gets the
    edited examples, sheet.png (before, after, difference), edit.json (which codes changed, and how far the change
    reached) and edit.html. A model without codes is edited in its latents z.

    Attributes:
        picture: picture or sound file, or number of an example of the split.
        region: x,y,width,height in pixels of the picture at the model's size; start,length for a signal.
        seconds: START:END of the region in seconds, for a sound.
        mask: picture of the same size that is white in the region.
        level: with several levels of codes, edit only this one; 0 is the coarsest.
        resample: sample the region from the prior over codes, given everything around it.
        count: number of variants to sample; by default 8.
        paste: take the codes of another picture (OTHER) from the same place, or from x,y with OTHER@x,y.
        code: set every code of the region to this number.
        blend: other picture and a number from 0 to 1: interpolate to the other picture by this amount.
        blend_original: keep the picture's own pixels outside the region; the edit is blended in over a narrow ring.
        native_size: keep picture files at their own size, instead of cropping and resizing them.
        prior: kind of the prior to resample with; by default one that conditions on all codes around, else the best.
        temperature: for `resample`, divides the log-probabilities; below 1 samples are more typical.
        top_k: for `resample`, sample each code from its k most likely values only.
        top_p: for `resample`, sample each code only from the most likely values that together have this probability.
        seed: seed of the sampling.
        data: data set to use instead of the run's own; it is read with the run's options.
        split: split that numbers of examples refer to.
        label: class by name or number, of files for a conditional model; without an operation, the class to decode as.
    """

    picture: Positional[str]
    region: str | None = None
    seconds: str | None = None
    mask: str | None = None
    level: int | None = None
    resample: bool = False
    count: Annotated[int | None, arg(aliases=("-n",))] = None
    paste: str | None = None
    code: int | None = None
    blend: tuple[str, float] | None = None
    blend_original: bool = False
    native_size: bool = False
    prior: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    data: str | None = None
    split: str = "test"
    label: str | None = None

    def __post_init__(self) -> None:
        asked = [option(name) for name in OPERATIONS if getattr(self, name) not in (None, False)]
        every = f"{', '.join(map(option, OPERATIONS[:-1]))} and {option(OPERATIONS[-1])}"
        if len(asked) != 1 and not self.relabels:
            given = f"{' and '.join(asked)} cannot be combined" if asked else "no operation is given"
            also = "" if asked else f", or {option('label')} to decode as another class"
            raise SpecError(f"{given}: give one of {every}{also}", code="one-operation")
        if self.region_options > 1 or not (self.region_options or self.relabels):
            either = f"{option('region')} x,y,width,height, {option('seconds')} START:END and {option('mask')} PICTURE"
            raise SpecError(f"give the region by one of {either}", code="one-region")
        if not self.resample and (self.count is not None or self.prior is not None):
            raise SpecError(
                f"{option('count')} and {option('prior')} can only be used with {option('resample')}",
                code="only-with-resample",
            )
        if self.region is not None and len(self.corners(0)) not in (2, 4):
            raise SpecError(
                f"the region {self.region!r} is malformed: give four integers x,y,width,height, or for a signal "
                "start,length",
                code="malformed-region",
            )

        if self.seconds is not None and not SECONDS.fullmatch(self.seconds):
            raise SpecError(
                f"the region {self.seconds!r} is malformed: give {option('seconds')} START:END, such as 0.4:0.9",
                code="malformed-region",
            )

    @property
    def region_options(self) -> int:
        """Return the number of options that give a region."""
        return 3 - [self.region, self.seconds, self.mask].count(None)

    @property
    def relabels(self) -> bool:
        """Return whether the codes stay and are decoded as another class."""
        return self.label is not None and all(getattr(self, name) in (None, False) for name in OPERATIONS)

    def corners(self, rate: float) -> tuple[int, ...]:
        """Return the numbers of the region; none if they are malformed.

        Args:
            rate: samples per second of a sound, for a region in seconds.

        Raises:
            SpecError: if the region is in seconds and there is no rate.
        """
        if self.seconds is not None:
            if not rate:
                raise SpecError(f"{option('seconds')} is for sounds: give {option('region')}", code="malformed-region")
            start, end = (round(float(number) * rate) for number in self.seconds.split(":"))
            return start, end - start
        well_formed = re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)+", self.region or "")
        return tuple(map(int, (self.region or "").split(","))) if well_formed else ()

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


@final
@dataclass(frozen=True)
class EditResult(Result):
    """An edited example, and how it was made.

    Attributes:
        config: the options.
        edited: examples, codes and masks before and after.
        schema: schema of the examples.
        operation: description of the operation.
        model: fingerprint of the model's weights.
    """

    config: EditConfig
    edited: Edited
    schema: Schema
    operation: str
    model: str

    @property
    def files(self) -> list[str]:
        """List the file names of the edited examples."""
        from tessella.kinds.base import kind_of

        numbers = [f"-{n + 1}" for n in range(len(self.edited.result))] if self.config.resample else [""]
        return [f"edited{number}{kind_of(self.schema).file_ending}" for number in numbers]

    def to_json(self) -> Mapping[str, Any]:
        c = self.config
        about = {"version": VERSION, "model": self.model, "picture": c.picture, "operation": self.operation}
        about |= {"seed": c.seed, "blend_original": c.blend_original, "files": self.files}
        return {**about, **self.edited.to_json()}

    def page(self) -> Page:
        from tessella.tasks.edit.result import blocks

        picture = self.config.picture
        name = os.path.basename(picture) if os.path.isfile(picture) else f"Example {picture} of {self.config.split}"
        return Page(f"{name}, edited", blocks(self.edited, self.schema), f"{self.operation}.")

    def save(self, out: Path) -> None:
        from tessella.foundation.output_folder import Outputs
        from tessella.kinds.base import kind_of
        from tessella.tasks.edit.result import edit_sheet

        sheet, text = edit_sheet(self.edited, self.schema), json_text(self.to_json(), indent=1)
        with Outputs(str(out), [*self.files, "sheet.png", "edit.json"], "", overwrite=True) as outputs:
            for name, x in zip(self.files, self.edited.result, strict=True):
                outputs.write(name, partial(kind_of(self.schema).write, x=x))
            outputs.write("sheet.png", lambda draft: sheet.save(draft, format="PNG"))
            outputs.write("edit.json", lambda draft: draft.write_text(text, "utf-8"))


@task(
    "edit",
    summary="change one region of an example by its codes; all other codes stay",
    group="use",
    out="edited",
    page="edit.html",
)
def edit(run: Run, config: EditConfig) -> EditResult:
    """Edit one example with the model of a run."""
    from tessella.tasks.edit.editing import box, edit_example, read_mask

    model = run.model((config.prior or _inpainting_prior(run)) if config.resample else "trained")
    example, own = _read(run, model, config, config.picture)
    size = tuple(example.x.shape[2:])
    corners = config.corners(model.schema.rate) if config.region_options else (*(0,) * len(size), *reversed(size))
    region = read_mask(config.mask, size) if config.mask else box(corners, size)
    if config.relabels:
        return _relabelled(run, model, config, example, own, region)
    operation, what = _operation(run, model, config)
    if config.resample and model.levels:
        _note_on_the_prior(cast("CodeModel", model), run)
    how: dict[str, Any] = {"label": example.label, "seed": config.seed, "blend_original": config.blend_original}
    edited = edit_example(model, example.x[0], region, operation, level=config.level, **how)
    what += f", in level {config.level}" if config.level is not None else ""
    what += "; outside it the original values are kept" if config.blend_original else ""
    return EditResult(config, edited, model.schema, what, run.fingerprint)


def _relabelled(
    run: Run, model: Model, config: EditConfig, example: Batch, own: str | None, region: Tensor
) -> EditResult:
    """Decode the codes of an example as another class."""
    from tessella.data.inputs import label_number
    from tessella.tasks.edit.editing import decode_as

    if not model.networks_see_labels:
        raise SpecError(
            f"the model {model.name} does not decode by the class: train a cvqvae, or give an operation",
            code="no-conditional-decoder",
        )
    classes = model.schema.classes
    label = label_number(model.schema, str(config.label))
    before = classes.index(own) if own in classes else None
    edited = decode_as(model, example.x[0], region, label, own=before, blend_original=config.blend_original)
    what = f"The same codes, decoded as {classes[label]}" + (f" instead of {own}" if before is not None else "")
    return EditResult(config, edited, model.schema, what, run.fingerprint)


def _read(run: Run, model: Model, config: EditConfig, word: str) -> tuple[Batch, str | None]:
    """Read one example `[1, C, *spatial]`, and the name of its class; the windows of a recording are joined."""
    from tessella.core.batches import Batch
    from tessella.core.observed import trimmed
    from tessella.data.folders.read import windows_of

    native = config.native_size and os.path.isfile(word)
    options = {"data": config.data, "split": config.split, "label": config.label, "native_size": native}
    inputs = run.inputs(model, (word,), **options)
    batches = list(inputs)
    batch, own = Batch.cat([named.batch for named in batches]), batches[0].classes[0]
    if len(batch) > 1 and os.path.isfile(word) and len(windows_of(inputs.names)) == 1:
        joined = trimmed(batch.x.movedim(0, 1).flatten(1, 2)[None], 1)
        batch = Batch(joined, None if batch.label is None else batch.label[:1])
    if len(batch) != 1:
        raise DataError(f"{word} names {len(batch)} examples: give one", code="one-example")
    return batch, own


def _operation(run: Run, model: Model, config: EditConfig) -> tuple[Operation, str]:
    """Make the operation and its description."""
    from tessella.tasks.edit.operations import Blend, Inpaint, Paste, SetCode

    def read(word: str):
        return _read(run, model, config, word)[0].x[0]

    if config.paste is not None:
        placed = None if os.path.isfile(config.paste) else PLACED.fullmatch(config.paste)
        if placed is None:
            return Paste(read(config.paste)), f"The region has the codes of {config.paste}"
        at = tuple(map(int, placed[2].split(",")))
        return Paste(read(placed[1]), at), f"The region has the codes of {placed[1]} at {placed[2]}"
    if config.code is not None:
        return SetCode(config.code), f"Every code of the region is {config.code}"
    if config.blend is not None:
        other, amount = config.blend
        return Blend(read(other), amount), f"The region is interpolated to {other} by {100 * amount:g} %"
    count = VARIANTS if config.count is None else config.count
    return Inpaint(count, config.sampling), "The region is resampled"


def _inpainting_prior(run: Run) -> str | None:
    """Return a fitted prior that conditions on all known codes; None if there is none."""
    return next((kind for kind in _any_order_priors() if run.has_prior(kind)), None)


def _any_order_priors() -> list[str]:
    """List the priors over codes that condition on all known codes, not only on earlier ones."""
    from tessella.foundation import registry

    kinds = {entry.name: entry.load() for entry in registry.entries("code-prior")}

    return [name for name, kind in kinds.items() if kind.any_order and kind.fitted_after]


def _note_on_the_prior(model: CodeModel, run: Run) -> None:
    """Note what the prior does not condition on, and which prior would."""
    fit = f"{task_name('fit-prior', str(run.path))} with {option('kind')} {_any_order_priors()[0]}"
    remedy = f"fit one that conditions on all codes by {fit}"
    if not model.fitted:
        note(f"no prior is fitted, so all codes are equally likely: {remedy}")
    elif not all(prior.any_order for prior in model.priors):
        note(
            "this prior conditions each code only on those before it in raster order, not on those to the right of and "
            f"below the region: {remedy}"
        )
