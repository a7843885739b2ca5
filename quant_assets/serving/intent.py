"""One quantization intent for all backends, translated or refused.

`method: int4` is what a user writes; `to_backend_params` translates it for a backend and a GPU, and
refuses what they cannot do with the reason and the nearest combination that they can. A backend is
a module of this folder, an entry in `BACKENDS`, and its name and methods in
`quant_assets.models.quantization_intent`. The decision for this layer is in docs/intent.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu
from quant_assets.models.quantization_intent import Backend, QuantizationIntent
from quant_assets.models.stored_quantization import FLOAT, detect_quantization
from quant_assets.serving.backend import BackendParams, ServingBackend, impossible
from quant_assets.serving.llamacpp import LlamaCpp
from quant_assets.serving.pytorch import PyTorch
from quant_assets.serving.tensorrt import TensorRtLlm
from quant_assets.serving.vllm import Vllm

BACKENDS: Final[Mapping[Backend, ServingBackend]] = {
    backend.name: backend for backend in (PyTorch(), Vllm(), TensorRtLlm(), LlamaCpp())
}

_ANY_MODEL: Final = "MODEL"


class BackendRefusal(BaseModel):
    """Why a backend cannot fulfil an intent, in three parts."""

    model_config = ConfigDict(frozen=True)

    backend: Backend
    what: str
    why: str
    next_step: str


class IntentAnswers(BaseModel):
    """One answer per backend; a refusal is one."""

    model_config = ConfigDict(frozen=True)

    answers: tuple[BackendParams | BackendRefusal, ...]

    @property
    def refusals(self) -> tuple[BackendRefusal, ...]:
        """The refusals among the answers."""
        return tuple(answer for answer in self.answers if isinstance(answer, BackendRefusal))


class Subject(BaseModel):
    """What is served, and on which GPU.

    `model` is the folder or GGUF file, from which `auto` reads the method; `name` is how commands
    call the model, its path where none is given.
    """

    model_config = ConfigDict(frozen=True)

    gpu: Gpu | None = None
    model: Path | None = None
    name: str | None = None

    @property
    def called(self) -> str:
        """The model in commands."""
        return self.name or (str(self.model) if self.model else _ANY_MODEL)


class UnifiedQuantizationConfig(QuantizationIntent):
    """An intent that can be translated for every backend."""

    @classmethod
    def of(cls, intent: QuantizationIntent) -> "UnifiedQuantizationConfig":
        """The same intent; what was not stated stays unstated."""
        return cls.model_validate(intent.model_dump(exclude_unset=True))

    def to_backend_params(
        self,
        backend: Backend,
        gpu: Gpu | None = None,
        model: Path | None = None,
        name: str | None = None,
    ) -> BackendParams:
        """The parameters of `backend`, on `gpu` where one is given.

        `auto` takes the method from the files of `model`; without a model it quantizes nothing.
        `name` is how commands call the model, its path by default. Raises `InputError` for what the
        backend or the GPU cannot do.
        """
        subject = Subject(gpu=gpu, model=model, name=name)
        engine = BACKENDS[backend]
        answer = self._translate(engine, subject)
        notes = list(answer.notes)
        if self.method == "auto" and model is None:
            notes.append("auto reads a model's files, and none are here: 16 bits are assumed.")
        if self.calibration is not None and not answer.calibrated:
            notes.append(
                f"The calibration is not used: {answer.method} on {backend} measures no text."
            )
        answer = answer.model_copy(update={"notes": tuple(notes)})
        if model is not None:
            engine.check_range(answer, gpu, model)
        return answer

    def for_every_backend(
        self, gpu: Gpu | None = None, model: Path | None = None, name: str | None = None
    ) -> IntentAnswers:
        """One answer per backend, a refusal where it cannot fulfil the intent."""
        answers: list[BackendParams | BackendRefusal] = []
        for backend in BACKENDS:
            try:
                answers.append(self.to_backend_params(backend, gpu, model, name))
            except InputError as error:
                answers.append(
                    BackendRefusal(
                        backend=backend,
                        what=error.what,
                        why=error.why,
                        next_step=error.next_step,
                    )
                )
        return IntentAnswers(answers=tuple(answers))

    def _translate(self, engine: ServingBackend, subject: Subject) -> BackendParams:
        gpu = subject.gpu
        if gpu is not None and not engine.supports(gpu):
            raise impossible(
                f"{engine.name} does not run quantized models on {gpu.canonical_name}.",
                f"Its quantized kernels are for {engine.gpus}.",
                "the backend llamacpp, which runs GGUF on it",
            )
        chosen = engine.methods.get(self.backend_method) if self.backend_method else None
        if self.backend_method and chosen is None:
            raise impossible(
                f"{engine.name} has no method {self.backend_method!r}.",
                f"It has {', '.join(engine.methods)}.",
                f"leave backend_method out for {engine.name}",
            )
        if self.method == "auto":
            return self._as_stored(engine, subject)
        if chosen is not None and self.method not in chosen.intents:
            raise impossible(
                f"{engine.name} has no {self._described}.",
                f"Its {self.backend_method} does {' or '.join(chosen.intents)}.",
                f"leave backend_method out for {engine.name}",
            )
        stated, forms = self.stated_weight_only, engine.forms(self, gpu)
        if stated is not None and forms and stated not in forms:
            # A backend or GPU that cannot do the method at all is the better reason.
            self._without("weight_only")._translate(engine, subject)
            raise impossible(
                f"{engine.name} has no {self._described} with weight_only: {str(stated).lower()}.",
                engine.activations,
                next(self._alternatives(engine, subject)),
            )
        return engine.quantize(self, gpu, subject.called)

    def _as_stored(self, engine: ServingBackend, subject: Subject) -> BackendParams:
        """The translation of `auto`."""
        stored = detect_quantization(subject.model) if subject.model else FLOAT
        method = self.backend_method
        if method is not None and method.removesuffix("_marlin") != stored.format:
            raise impossible(
                f"{engine.name} cannot serve {subject.called} by {method}.",
                f"auto takes a model as it is stored, here as {stored.format}.",
                "auto without backend_method",
            )
        stated = self.stated_weight_only
        if stored.format == "float" and stated is False:
            raise impossible(
                f"{engine.name} does not quantize the activations of {subject.called}.",
                "auto takes a model as it is stored, and this one is not quantized.",
                "auto without weight_only, or int8 in place of auto",
            )
        if stored.format == "float":
            return self.model_copy(update={"method": "none"})._translate(engine, subject)
        answer = engine.load(stored, self, subject.gpu, subject.called)
        if stated is not None and stated not in engine.stored_forms(stored, subject.gpu):
            raise impossible(
                f"{engine.name} does not serve {subject.called} with "
                f"weight_only: {str(stated).lower()}.",
                f"The model is stored as {stored.format} with {stored.bits} bits. "
                f"{engine.activations}",
                "auto without weight_only",
            )
        return answer

    def _alternatives(self, engine: ServingBackend, subject: Subject) -> Iterator[str]:
        """What comes near and works: the wish elsewhere, then the wish without `weight_only`."""
        wanted = f"weight_only: {str(self.weight_only).lower()}"
        free = self._without("backend_method")
        engines = [engine, *(other for other in BACKENDS.values() if other is not engine)]
        for other in engines:
            # A refusal asks for alternatives itself, so only forms that exist are tried.
            if self.weight_only in other.forms(free, subject.gpu):
                try:
                    free._translate(other, subject)
                except InputError:
                    continue
                yield f"{self.method} with {wanted} on {other.name}"
        yield f"{self._described} on {engine.name} without weight_only"

    @property
    def _described(self) -> str:
        return f"{self.method} by {self.backend_method}" if self.backend_method else self.method

    def _without(self, field: str) -> "UnifiedQuantizationConfig":
        """The intent with one field unstated."""
        return type(self).model_validate(self.model_dump(exclude_unset=True, exclude={field}))
