"""The outputs of the embedded server's models and ensembles that hold receipts."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc.model_config_pb2 import TYPE_UINT32, ModelConfig

from dfer_deploy.triton_models.receipts import RECEIPT


def add_receipts(models: Sequence[ModelConfig], ensembles: Sequence[ModelConfig], prefix: str) -> None:
    """Add the outputs by which a client sees that its answer was made from its own request (see ``receipts.py``).

    A parameter with the name of the output lists the tensors whose digests it holds.
    """
    tensors = {model.name: [entry.name for entry in (*model.input, *model.output)] for model in models}
    for model in models:
        _add_receipt(model, RECEIPT, tensors[model.name])
    for ensemble in ensembles:
        for step in ensemble.ensemble_scheduling.step:
            name = f"{step.model_name.removeprefix(f'{prefix}_')}_{RECEIPT}"
            places = {**step.input_map, **step.output_map}
            step.output_map[RECEIPT] = name
            _add_receipt(ensemble, name, [places[tensor] for tensor in tensors[step.model_name]])


def _add_receipt(config: ModelConfig, name: str, tensors: Sequence[str]) -> None:
    config.output.add(name=name, data_type=TYPE_UINT32, dims=[len(tensors)])
    config.parameters[name].string_value = ",".join(tensors)
