"""The search of AutoAWQ, without its fault on CPUs, and faster.

AutoAWQ keeps a backup of the weights with `tensor.cpu()`, which on a CPU is the same memory: every
candidate then spoils the weights that the next one starts from. Here the candidates are new
tensors. Two sums are computed in another order, with the same result up to rounding: the error of a
single matrix W with inputs X is the trace of dW (X^T X) dW^T, and the error of a clipped group is
the same with the group's block of X^T X.
"""

from typing import Any

import awq.quantize.quantizer as autoawq_quantizer
import torch
from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
from awq.models.base import AwqConfig
from awq.quantize.quantizer import AwqQuantizer
from awq.quantize.scale import apply_clip, apply_scale

from quant_assets.errors import InputError
from quant_assets.quantize.groupwise import GroupwiseSettings
from quant_assets.workers.groupwise.loop import installed_versions, linears
from quant_assets.workers.groupwise.streaming import StreamedModel

_LIBRARIES = ("autoawq", "transformers", "torch")
_GRID = 20
_CLIP_GRID = 20
_CLIP_CANDIDATES = 10
_CLIP_TOKENS = 512
_ROWS_AT_ONCE = 2048
_TOKENS_AT_ONCE = 8192

# AutoAWQ collects garbage several times a matrix, which takes longer than the search itself.
autoawq_quantizer.clear_memory = lambda *_: None


class _Search(AwqQuantizer):  # type: ignore[misc]
    def init_quant(
        self, n_samples: int = 0, max_seq_len: int = 0
    ) -> tuple[list[torch.nn.Module], dict[str, Any], None]:
        """The layer loop is not AutoAWQ's; nothing is loaded here."""
        del n_samples, max_seq_len
        return [], {}, None

    def _compute_best_scale(
        self,
        x: torch.Tensor,
        w_mean: torch.Tensor,
        x_mean: torch.Tensor,
        module2inspect: torch.nn.Module,
        linears2scale: list[torch.nn.Linear],
        fp16_output: torch.Tensor,
        kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        originals = [linear.weight.data for linear in linears2scale]
        single = isinstance(module2inspect, torch.nn.Linear)
        gram = _gram(x, originals[0]) if single else None
        best_error, best_scales = float("inf"), None
        for step in range(_GRID):
            scales = _scales(x_mean, w_mean, step / _GRID, duo=self.duo_scaling)
            for linear, original in zip(linears2scale, originals, strict=True):
                candidate = self.pseudo_quantize_tensor(original * scales)[0]
                linear.weight.data = candidate.div_(scales)
            if gram is not None:
                delta = linears2scale[0].weight.data - originals[0]
                error = float(((delta @ gram) * delta).sum())
            else:
                output = self._module_forward(x, module2inspect, kwargs or {})
                error = float((output - fp16_output).float().pow(2).sum())
            if error < best_error:
                best_error, best_scales = error, scales
        for linear, original in zip(linears2scale, originals, strict=True):
            linear.weight.data = original
        if best_scales is None:
            raise InputError(
                "The search for scales found none.",
                "The model's activations are not finite.",
                "Check that the model answers sensibly before it is quantized.",
            )
        return best_scales.cpu()

    def _compute_best_clip(
        self,
        w: torch.Tensor,
        input_feat: torch.Tensor,
        n_grid: int = _CLIP_GRID,
        max_shrink: float = _CLIP_CANDIDATES / _CLIP_GRID,
        n_sample_token: int = _CLIP_TOKENS,
    ) -> torch.Tensor:
        tokens = input_feat.reshape(-1, input_feat.shape[-1])
        tokens = tokens[:: max(1, len(tokens) // n_sample_token)].to(w.device).float()
        grouped = tokens.reshape(len(tokens), -1, self.group_size).transpose(0, 1)
        gram = grouped.transpose(1, 2) @ grouped  # groups x channels x channels
        bounds = []
        for rows in w.float().split(_ROWS_AT_ONCE):
            weights = rows.reshape(len(rows), -1, self.group_size)
            largest = weights.abs().amax(dim=-1, keepdim=True)
            best = largest.clone()
            least = torch.full_like(largest, float("inf"))
            for step in range(int(max_shrink * n_grid)):
                bound = largest * (1 - step / n_grid)
                clipped = torch.clamp(weights, -bound, bound)
                delta = (self.pseudo_quantize_tensor(clipped)[0] - weights).transpose(0, 1)
                error = ((delta @ gram) * delta).sum(dim=-1).t().unsqueeze(-1)
                better = error < least
                least = torch.where(better, error, least)
                best = torch.where(better, bound, best)
            bounds.append(best)
        return torch.cat(bounds).to(w.dtype)


def _gram(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """X^T X over all tokens, in float32."""
    channels = inputs.shape[-1]
    total = torch.zeros(channels, channels, device=weight.device)
    for part in inputs.reshape(-1, channels).split(_TOKENS_AT_ONCE):
        rows = part.to(weight.device).float()
        total += rows.t() @ rows
    return total


def _scales(x_mean: torch.Tensor, w_mean: torch.Tensor, ratio: float, *, duo: bool) -> torch.Tensor:
    """AutoAWQ's candidate for one ratio, one factor a channel."""
    x_mean, w_mean = x_mean.reshape(-1), w_mean.reshape(-1).to(x_mean.device)
    scales = x_mean.pow(ratio)
    if duo:
        scales = scales / (w_mean.pow(1 - ratio) + 1e-4)
    scales = scales.clamp(min=1e-4)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return torch.where(torch.isfinite(scales), scales, torch.ones_like(scales))


class AutoAwqEngine:
    """AutoAWQ's knowledge of architectures and its search; see `AwqEngine`.

    Raises `InputError` for an architecture that AutoAWQ does not know.
    """

    def __init__(self, model: StreamedModel, settings: GroupwiseSettings) -> None:
        architecture = model.config.model_type
        if architecture not in AWQ_CAUSAL_LM_MODEL_MAP:
            raise InputError(
                f"AutoAWQ does not know the architecture {architecture}.",
                f"It knows {', '.join(sorted(AWQ_CAUSAL_LM_MODEL_MAP))}.",
                "Use --engine gptqmodel, or --to gptq.",
            )
        self._model = AWQ_CAUSAL_LM_MODEL_MAP[architecture](
            model.model,
            architecture,
            is_quantized=False,
            config=model.config,
            quant_config=AwqConfig(),
            processor=None,
        )
        self._search = _Search(
            self._model,
            model.model,
            None,
            settings.bits,
            settings.group_size,
            zero_point=True,
            version="gemm",
            calib_data=None,
            split="",
            text_column="",
            duo_scaling=True,
            n_parallel_calib_samples=max(1, _TOKENS_AT_ONCE // settings.sequence_length),
        )

    def library_versions(self) -> dict[str, str]:
        """Versions of what decides the bytes."""
        return installed_versions(_LIBRARIES)

    def search(
        self, layer: torch.nn.Module, features: dict[str, torch.Tensor], kwargs: dict[str, Any]
    ) -> None:
        """Scale and clip the layer's weights in place."""
        groups = self._model.get_layers_for_scaling(layer, features, kwargs)
        found = [self._search._search_best_scale(layer, **group) for group in groups]
        apply_scale(layer, found, input_feat_dict=features)
        apply_clip(layer, self._search._search_best_clip(layer, linears(layer), features))
