"""Any adapter of peft on the Linear layers of a tower: DoRA, PiSSA, VeRA, OFT, IA3, LoHa, LoKr and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn import functional

from ...errors import DtrapError, check_one_of, first_line
from ..backbones.base import Backbone, Tower
from ..backbones.peft_layers import adapter_modules, refuse_adapters
from ..chunking import RowDropout
from .base import ENCODERS, Tuner, attach_once
from .peft_config import described, make_config, short_name, tuner_class
from .target_layers import MLP, PROJECTIONS, chosen_attention, mlp_layers

_ADAPTER, _START = "default", "start"
# The start of these is computed from the weights alone, by a decomposition that takes seconds.
_FROM_WEIGHTS = ("pissa", "olora")
# For type checkers and saved files: plain values only.
Config = dict[str, str | dict[str, bool | int | float | str | list[str] | None]]
DORA: Config = {"class_path": "peft.LoraConfig", "init_args": {"use_dora": True, "r": 16, "lora_alpha": 16}}


class PEFT(Tuner):
    """Adapters of any type that peft can put on a Linear layer, such as DoRA, PiSSA, VeRA, OFT, IA3, LoHa or LoKr.

    The adapters are created again at every reset, from the episode's seed. Types that subtract the adapter's start from
    the weights (PiSSA, OLoRA) keep the weights here: the start is subtracted by a second, fixed adapter, so that
    zero-shot features are those of the untouched backbone.

    Args:
        config: A config of peft as class path and arguments, without the target modules; or an object of peft. None
            means DoRA of rank 16.
        encoder: The towers with adapters.
        targets: The layers of each block: q, k, v and o of the attention, and mlp.
        blocks: Numbers of the blocks of each tower with adapters, negative ones from the end; None means all.

    Raises:
        DtrapError: An argument has no valid value, or the type needs what a tower or an episode does not have.
    """

    merges_into_backbone = True
    libraries = ("peft",)

    def __init__(
        self,
        config: Config | None = None,
        encoder: Literal["vision", "text", "both"] = "vision",
        targets: Sequence[Literal["q", "k", "v", "o", "mlp"]] = ("q", "k", "v"),
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_one_of("PEFT: encoder", encoder, ENCODERS)
        for target in targets:
            check_one_of("PEFT: an entry of targets", target, (*PROJECTIONS, MLP))
        if not targets:
            raise DtrapError("PEFT: targets is empty; choose at least one of q, k, v, o and mlp.")
        self.config = described(DORA if config is None else config)
        self.encoder = encoder
        self.targets = list(targets)
        self.blocks = None if blocks is None else list(blocks)
        self.name = f"peft-{short_name(make_config(self.config, target_modules=['none']))}"
        self._chosen: tuple[list[str], list[str]] = [], []
        self._layers: dict[str, nn.Module] = {}
        self._paths: dict[str, tuple[nn.Module, str]] = {}
        self._trained: list[str] = []
        self._start: dict[str, Tensor] | None = None

    @property
    def trains(self) -> frozenset[Tower]:
        """The towers with adapters."""
        return frozenset(ENCODERS[self.encoder])

    @attach_once
    def attach(self, backbone: Backbone) -> None:
        """Wrap the chosen layers with adapters.

        Raises:
            DtrapError: The settings choose no layer or a block that does not exist, peft cannot adapt a layer, this
                tuner is attached to another backbone, or the backbone has adapters of another tuner.
        """
        refuse_adapters(backbone, backbone.identifier, "PEFT")
        self._chosen = self._targets(backbone)
        self._inject(backbone, 0)

    def _targets(self, backbone: Backbone) -> tuple[list[str], list[str]]:
        """Return the names of the layers to adapt, and of those among them at the end of an MLP."""
        names, last = [], []
        for tower in sorted(self.trains):
            attention = chosen_attention("PEFT", backbone, tower, self.blocks)
            names += [f"{layer}.{PROJECTIONS[p]}" for layer in attention for p in self.targets if p in PROJECTIONS]
            if MLP in self.targets:
                layers = mlp_layers(backbone, tower, attention)
                names += [name for of_block in layers for name in of_block]
                last += [of_block[-1] for of_block in layers if of_block]
        if not names:
            raise DtrapError(f"PEFT: {backbone.identifier} has no Linear layers for the targets {self.targets}.")
        return names, last

    def peft_config(self) -> PeftConfig:
        """Return the config with the names of the layers of the attached backbone."""
        names, last = self._chosen
        return make_config(self.config, target_modules=names, feedforward_modules=last)

    def _inject(self, backbone: Backbone, seed: int) -> None:
        """Put new adapters on the layers, whose random numbers depend on the seed only.

        Raises:
            DtrapError: peft cannot adapt a layer, or the type changes weights in a way that cannot be undone.
        """
        config: Any = self.peft_config()
        # Where the shared random matrices are saved with the adapter, they can be the episode's own.
        if getattr(config, "save_projection", False) and "projection_prng_key" not in self.config["init_args"]:
            config.projection_prng_key = seed
        names = list(config.target_modules)
        originals = {name: backbone.get_submodule(name) for name in names}
        weights = {name: layer.get_parameter("weight").detach().clone() for name, layer in originals.items()}
        devices = sorted({value.device.index for value in weights.values() if value.device.type == "cuda"})
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                # The class itself, as `inject_adapter_in_model` would not do it for types with shared matrices (VeRA).
                tuner_class(config)(backbone, config, _ADAPTER)
            self._layers = {name: backbone.get_submodule(name) for name in names}
            self._check(backbone, config)
            for name, weight in weights.items():
                self._keep_weight(originals[name].get_parameter("weight"), weight, self._layers[name])
        except (TypeError, ValueError, RuntimeError, AttributeError, ImportError, KeyError, DtrapError) as error:
            self._remove(backbone, originals, weights)
            if isinstance(error, DtrapError):
                raise
            raise DtrapError(
                f"PEFT: peft cannot put {type(config).__name__} on {backbone.identifier} ({first_line(error)[:200]}). "
                "Change the config's arguments or the targets."
            ) from error
        self._prepare()

    def _check(self, backbone: Backbone, config: PeftConfig) -> None:
        """Raise a DtrapError if the adapters are not separate parts of the wrapped layers, or have unknown dropout."""
        kind = type(config).__name__
        if any(not hasattr(layer, "base_layer") for layer in self._layers.values()):
            raise DtrapError(f"PEFT: {kind} replaces layers instead of adapting them, so they could not be restored.")
        arguments = self.config["init_args"]
        dropouts = {name: value for name, value in arguments.items() if "dropout" in name and value}
        ordinary = any(isinstance(module, nn.Dropout) for module in adapter_modules(backbone).values())
        if dropouts and not ordinary:
            name, value = next(iter(dropouts.items()))
            raise DtrapError(
                f"PEFT: config.{name} is {value}, but its masks would differ between chunks of a batch; set it to 0."
            )

    def _keep_weight(self, parameter: nn.Parameter, original: Tensor, layer: Any) -> None:
        """Undo a type's change of the weight, and subtract the start in a fixed adapter instead.

        Raises:
            DtrapError: The change is not that of LoRA's product.
        """
        if torch.equal(parameter, original):
            return
        if not hasattr(layer, "lora_A") or layer.use_dora.get(_ADAPTER):
            raise DtrapError(
                f"PEFT: {self.name} with these arguments changes the backbone's weights in a way that only LoRA's "
                "matrices can undo; use another init_lora_weights, or no use_dora."
            )
        parameter.data = original
        for name in layer.other_param_names:  # settings by adapter, such as the scale
            values = getattr(layer, name, None)
            if isinstance(values, dict):
                values[_START] = values[_ADAPTER]
        layer.scaling[_START] = -layer.scaling[_ADAPTER]
        layer.lora_dropout[_START] = nn.Identity()
        for matrices in (layer.lora_A, layer.lora_B):
            matrices[_START] = _Fixed(matrices[_ADAPTER].weight)
        # Private in peft: `set_adapter` of a layer would do the same, and differs between versions.
        layer._active_adapter = [_ADAPTER, _START]

    def _prepare(self) -> None:
        """Note where the values are, and give dropout the masks that chunks need."""
        position = 0
        tensors: dict[str, tuple[nn.Module, str, str]] = {}
        for name, layer in self._layers.items():
            for path, module in adapter_modules(layer).items():
                if isinstance(module, nn.Dropout):
                    layer.set_submodule(path, RowDropout(module.p, position))
                    position += 1
                tensors |= {f"{name}.{path}.{own}": (module, own, f"{path}.{own}") for own in _saved(module)}
        owners: dict[int, list[str]] = {}
        for key, (module, own, _) in tensors.items():
            owners.setdefault(id(getattr(module, own, None)), []).append(key)
        shared = [tensors[keys[0]][2] for keys in owners.values() if len(keys) > 1]
        self._paths = {}
        for keys in owners.values():  # of a matrix that layers share, once
            module, own, path = tensors[keys[0]]
            self._paths[_short(path if len(keys) > 1 and shared.count(path) == 1 else keys[0])] = module, own
        self._trained = [key for key, value in self.adapter_state().items() if value.requires_grad]
        self.train(self.training)

    def _remove(self, backbone: Backbone, originals: dict[str, nn.Module], weights: dict[str, Tensor]) -> None:
        for name, layer in originals.items():
            backbone.set_submodule(name, layer)
            layer.get_parameter("weight").data = weights[name]
        # peft notes its config on the model.
        for name in ("peft_config", "active_adapter"):
            backbone.__dict__.pop(name, None)
        self._layers, self._paths, self._trained = {}, {}, []

    def reset(self, seed: int, num_classes: int) -> None:
        """Create the adapters again, with all random numbers from the seed."""
        if not self._attached_to:
            raise DtrapError("PEFT: the tuner has no backbone; call attach(backbone) first.")
        backbone = self._attached_to[0]
        start = str(self.config["init_args"].get("init_lora_weights")).lower()
        if self._start is not None:
            self.load_adapter_state(self._start)
            return
        layers: dict[str, Any] = dict(self._layers)
        originals = {name: layer.get_base_layer() for name, layer in layers.items()}
        weights = {name: layer.get_parameter("weight").data for name, layer in originals.items()}
        self._remove(backbone, originals, weights)
        self._inject(backbone, seed)
        if start in _FROM_WEIGHTS:
            self._start = {name: value.detach().clone() for name, value in self.adapter_state().items()}

    def adapter_state(self) -> dict[str, Tensor]:
        """Return what is trained, and the fixed random matrices that it is used with (VeRA's, PiSSA's start)."""
        return {name: getattr(module, own) for name, (module, own) in self._paths.items()}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the adapters' parameters that peft trains."""
        state = self.adapter_state()
        return [state[name] for name in self._trained]  # type: ignore[misc]

    def saved_as_peft(self) -> tuple[PeftConfig, dict[str, Tensor], PEFT | None]:
        """Return peft's config, the values by the backbone's names with peft's endings, and a tuner equal to these.

        Where a start is subtracted, A and B are those of a LoRA of twice the rank, and the equal tuner is that LoRA;
        otherwise it is None.
        """
        config, state = self.peft_config(), self.adapter_state()
        tuner = None
        if any(name.endswith(f".{_START}") for name in state):
            layer: Any = next(iter(self._layers.values()))
            arguments = {name: self.config["init_args"].get(name, 0.0) for name in ("lora_dropout",)}
            rank = 2 * layer.r[_ADAPTER]
            arguments |= {"r": rank, "lora_alpha": layer.scaling[_ADAPTER] * rank}
            tuner = PEFT(
                {"class_path": "peft.LoraConfig", "init_args": arguments}, self.encoder, self.targets, self.blocks
            )
            tuner._chosen = self._chosen
            config = tuner.peft_config()
            state = _joined(state)
        values = {}
        for name, value in state.items():
            _, own = self._paths[name]
            # DoRA's magnitude is a module here and a bare value in peft's files.
            ending = ".weight" if own == "weight" and not name.endswith("lora_magnitude_vector") else ""
            values[f"{name}{ending}"] = value
        return config, values, tuner

    def train(self, mode: bool = True) -> PEFT:
        """Set the mode of the adapters, which are part of the backbone, not of this module."""
        super().train(mode)
        layers: dict[str, Any] = self._layers
        for layer in layers.values():
            layer.train(mode)
            layer.get_base_layer().eval()
        return self

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the adapters are off."""
        layers: list[Any] = list(self._layers.values())
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter in self.trained_parameters():
                parameter.requires_grad_(True)


class _Fixed(nn.Module):
    """A linear layer without bias that is never trained.

    Args:
        weight: [out, in]; copied.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return functional.linear(x, self.weight)


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return A and B of twice the rank whose product is that of the trained ones minus that of the start."""
    joined = {}
    for name, value in state.items():
        if name.endswith(".lora_A"):
            joined[name] = torch.cat([value, state[f"{name}.{_START}"]])
        elif name.endswith(".lora_B"):
            joined[name] = torch.cat([value, -state[f"{name}.{_START}"]], dim=1)
    return joined


def _saved(module: nn.Module) -> list[str]:
    """Return the names of a module's own parameters and persistent buffers."""
    # Private in torch, which has no public way to ask for a module's own persistent buffers.
    buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    found = [*module._parameters, *buffers]
    return [name for name in found if getattr(module, name, None) is not None]


def _short(name: str) -> str:
    """Return a name as peft saves it, without the adapter's name, and without a last ".weight"."""
    parts = [part for part in name.split(".") if part != _ADAPTER]
    return ".".join(parts[:-1] if parts[-1] == "weight" else parts)
