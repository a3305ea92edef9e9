"""Ray for sweeps that one process carries out in turn, and the engines that one leaves to the next."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from layersweep.orchestrator.planning.engine_facts import same_engines
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.errors import SpecError

from .ray_session import connected, wait_for_names

if TYPE_CHECKING:
    from .clients import EngineClient


class SweepSession:
    """Ray as long as sweeps need it.

    A sweep that completes leaves its engines, started and checked, where the next one needs the same; anything else
    begins on a Ray of its own. A context manager, at whose end Ray is left in any case.

    Args:
        address: of a running cluster; None starts one here.
        plans: of all sweeps, in their order.
    """

    def __init__(self, address: str | None, plans: Sequence[Plan]):
        self.address, self.plans = address, plans
        self.environment: dict[str, Any] = {}
        """Ray's runtime environment of engines and trainers."""
        self.engines: dict[str, EngineClient] = {}
        """Engines without a sweep, by their actors' names."""
        self._served: Plan | None = None
        self._ray = contextlib.ExitStack()

    def __enter__(self) -> "SweepSession":
        return self

    def __exit__(self, *error: object) -> None:
        self._leave_ray()

    @contextlib.contextmanager
    def connected(self, plan: Plan) -> Iterator[None]:
        """Have Ray, and engines where the last sweep's can serve this one, for the time of a `with` block.

        Raises:
            SpecError: as for `ray_session.connected`.
        """
        gpu, number = plan.spec.resources.on_gpu(), next(i for i, one in enumerate(self.plans) if one is plan)
        if not (self.engines and same_engines(self._served, plan) and self._engines_answer(plan)):
            self._leave_ray()
            namespace = f"layersweep-{plan.spec.name}"
            self.environment = self._ray.enter_context(connected(self.address, namespace, gpu))
        else:
            print(f"layersweep: engines of {self._served.spec.name} go on", file=sys.stderr, flush=True)
        self._served, following = plan, self.plans[number + 1 : number + 2]
        try:
            yield
        except BaseException:
            self._leave_ray()
            raise
        if not (self.engines and any(same_engines(plan, other) for other in following)):
            self._leave_ray()

    def take_engines(self) -> "dict[str, EngineClient]":
        """Return the engines that the last sweep left; they have a sweep from now on."""
        taken, self.engines = self.engines, {}
        return taken

    def _engines_answer(self, plan: Plan) -> bool:
        """End the last sweep's other actors, and tell whether they are gone and its engines are well."""
        import ray
        from ray.util import list_named_actors

        for name in set(list_named_actors()) - set(self.engines):
            with contextlib.suppress(ValueError):  # it has ended by itself
                ray.kill(ray.get_actor(name))
        try:
            wait_for_names(ray.get_runtime_context().namespace, self.engines)
            asked = [engine.actor.stuck_for.remote() for engine in self.engines.values()]
            ray.get(asked, timeout=plan.spec.recovery.patience)
        except (SpecError, ray.exceptions.RayError):  # GetTimeoutError is one
            return False
        return True

    def _leave_ray(self) -> None:
        self.engines = {}
        self._ray.close()
