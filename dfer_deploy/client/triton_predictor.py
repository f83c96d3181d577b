"""A served model as one of the runtimes that are compared: it answers once or not at all."""

from __future__ import annotations

from dfer_deploy.client.blocking import Client, ServedPredictor
from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import Contract


class TritonPredictor(ServedPredictor):
    """A :class:`~dfer_deploy.runtimes.predictor.Predictor` that asks a server, for verification and measurement.

    A failure is a finding there, so nothing is tried again; and frames go over the network as they do for everyone.
    """

    def __init__(self, url: str, model: Contract | str = "dfer", *, timeout_s: float = 120.0) -> None:
        """Connect and read the configuration.

        Args:
            url: ``grpc://host:port``, ``http://host:port`` or ``host:port`` (gRPC).
            model: the ensemble's name, or the contract that the server has to fulfil.
            timeout_s: for every single request.

        Raises:
            DferDeployError: no server answers there, it has no such model, or the model breaks the contract.
        """
        name = model if isinstance(model, str) else model.ensemble.name
        super().__init__(Client(url, name, deadline_s=timeout_s, retries=0))
        if not isinstance(model, str):
            try:
                self._check_contract(model)
            except BaseException:
                self._client.close()
                raise

    def _check_contract(self, contract: Contract) -> None:
        size, classes = contract.ensemble.inputs[0].shape[2], contract.ensemble.outputs[0].shape[1]
        if (self.image_size, self.num_classes) != (size, classes):
            raise DferDeployError(
                f"the model {contract.ensemble.name!r} at {self._client.address} takes images of {self.image_size} "
                f"pixels and knows {self.num_classes} classes, expected {size} pixels and {classes} classes; "
                "is it another model?"
            )
