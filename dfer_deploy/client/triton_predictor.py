"""A served model as one of the runtimes that are compared, without retries."""

from __future__ import annotations

from dfer_deploy.client.blocking import Client, ServedPredictor
from dfer_deploy.errors import IncompatibleServerError
from dfer_deploy.specs import Contract


class TritonPredictor(ServedPredictor):
    """A :class:`~dfer_deploy.runtimes.predictor.Predictor` that asks a server, for verification and measurement.

    There, a failure is a result, so requests are not retried. Frames travel over the network as for any other client.
    """

    def __init__(self, url: str, model: Contract | str = "dfer", *, timeout_s: float = 120.0) -> None:
        """Connect and read the configuration.

        Args:
            url: ``grpc://host:port``, ``http://host:port`` or ``host:port`` (gRPC).
            model: the ensemble's name, or the contract whose ensemble the server must serve.
            timeout_s: seconds for each request.

        Raises:
            DferDeployError: no server answers at the address, the server does not have the model, or the model has
                another image size or number of classes than the contract.
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
            raise IncompatibleServerError(
                f"the model {contract.ensemble.name!r} at {self._client.address} takes images of {self.image_size} "
                f"pixels and knows {self.num_classes} classes, expected {size} pixels and {classes} classes; "
                "is it another model?"
            )
