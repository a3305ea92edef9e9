"""View of a sweep from elsewhere: its files, read from its folder or through the cluster that writes it."""

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.rollout.data.locations import local_path
from layersweep.workers.storage.files import read_bytes

from .ray_jobs import Cluster, Job


class SweepView:
    """Sweep by its folder or URI, or by its name on a cluster.

    Args:
        sweep: the folder (`<output>/<name>`, a path or an fsspec URI), or the name where there is an address.
        address: of the cluster's dashboard.

    Raises:
        SpecError: no such sweep.
    """

    def __init__(self, sweep: str, address: str | None):
        self.cluster: Cluster | None = None
        self.job: Job | None = None
        if address is None:
            self.folder = sweep.rstrip("/")
            if self.read(["sweep.yaml"]) == [None]:
                raise SpecError(
                    [f"{sweep}: no sweep here (there is no sweep.yaml); a sweep's name needs --address of its cluster"]
                )
        else:
            self.cluster = Cluster(address)
            self.job = self.cluster.find(sweep)
            self.folder = self.job.folder

    def refresh(self) -> None:
        """Ask the cluster for the job's status."""
        if self.cluster:
            self.job = self.cluster.renewed(self.job)

    def read(self, names: list[str]) -> list[bytes | None]:
        """Read files of the sweep; None where one does not exist yet."""
        paths = [f"{self.folder}/{name}" for name in names]
        if self.cluster and local_path(self.folder) is not None:
            return self.cluster.read(paths)  # its folder, not one by the same name here
        try:
            return [read_bytes(path) for path in paths]
        except (OSError, ImportError, ValueError) as error:  # no such protocol or credentials here: the cluster has
            if self.cluster:
                return self.cluster.read(paths)
            raise SpecError([f"{self.folder}: {error}"]) from error
