"""One vLLM engine behind a queue: many clients, one stepping thread.

vLLM's in-process `LLMEngine` is not thread-safe, and weights may only change between two steps. So one thread
owns it: it takes commands, admits requests, steps, and hands finished requests to their callbacks.

With async scheduling a step schedules and launches a batch, and then waits for the batch before it, so that one is in
flight between two steps. It is finished, and none scheduled meanwhile, before weights change: each batch is computed
with the weights that were there when it was scheduled.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.tokenizers.registry import get_tokenizer
from vllm.v1.engine.llm_engine import LLMEngine

from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.types import Completions, EngineStopped, Pushed, Sampling, StaleWeights

from .arguments import engine_args
from .batching import AutoBatching
from .request import EngineRequest, uncancelled
from .row_routing import RUN

logging.getLogger("vllm.v1.core.sched.scheduler").setLevel(logging.WARNING)  # it tells of each pause, so of each push

SETTLED = 32
"""Steps after a change of the static slots' structure until graphs are captured anew: runs come one after another."""


class RolloutEngine:
    """Engine that serves the base model and every run's overlay over it.

    Args:
        model: a folder.
        architecture: the first of the model config's `architectures`.
        config: the spec's `rollout` section.
        dtype: of weights, and of the KV cache where `config` leaves it.
        seed: of vLLM's own generators; every request brings its seeds besides.
        trust_remote_code: whether code that the folder brings may run.
    """

    def __init__(
        self,
        model: str,
        architecture: str,
        config: RolloutConfig,
        dtype: str,
        seed: int,
        trust_remote_code: bool = False,
    ):
        self._config, self._model, self.cuda_graphs = config, model, config.cuda_graphs
        self.kv_cache_dtype = config.kv_cache_dtype
        args = engine_args(model, architecture, config, dtype, seed, trust_remote_code)
        self._engine = LLMEngine.from_engine_args(args)
        self._core = self._engine.engine_core.engine_core  # in this process: VLLM_ENABLE_V1_MULTIPROCESSING is 0
        if config.async_scheduling != (self._core.batch_queue is not None):
            raise RuntimeError("rollout.async_scheduling: vLLM does not schedule as asked for here; set it to false")
        self._engine.collective_rpc("install_routing")
        self._structure, self._until_capture = self._slot_structure(), 0
        self._versions: dict[str, int] = {}
        self._pushes: dict[str, int] = {}
        self._pushed = 0
        self._asleep = False
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[EngineRequest] = deque()
        self._active: dict[int, EngineRequest] = {}
        self._numbers = 0
        self._failure: EngineStopped | None = None
        self._moved = time.monotonic()
        self.batching = AutoBatching(mixed=config.batching != "swap")
        self._clock = time.thread_time if current_platform.is_cpu() else time.perf_counter
        self.tokens = 0
        self.cpu_seconds = 0.0
        threading.Thread(target=self._loop, name="engine", daemon=True).start()

    def generate(
        self, run: str | None, version: int, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling
    ) -> "Future[Completions]":
        """Generate responses of `run` (None: the base) to `prompts` of token ids; `seeds` has one seed per prompt.

        The future raises StaleWeights when the engine's weights of the run are not of `version`, and ValueError
        when vLLM refuses a request (a prompt longer than the model allows).
        """
        size = len(prompts) * sampling.samples
        request = EngineRequest(run, version, prompts, seeds, sampling, uncancelled(), [None] * size, size)
        self._commands.put(lambda: self._waiting.append(request))
        return request.done

    def push(self, run: str, version: int, weights: Mapping[str, Any]) -> "Future[Pushed]":
        """Serve `run` from these weights (Hugging Face names) from now on.

        Requests of the run that are in flight are aborted: their caller has retried or is gone.
        """
        return self._call(self._push, run, version, weights)

    def push_parts(self, run: str, version: int, parts: Iterable[Mapping[str, Any]]) -> Pushed:
        """Serve `run` from weights that come in parts, each of whole blocks, as `push` does from all at once.

        Only one part is held beside what the engine keeps, and other runs are served while the next is waited for: to
        be called from a thread of its own.

        Raises:
            StaleWeights: other weights of the run were pushed meanwhile.
            Exception: what `parts` raises; the engine has no weights of the run then.
        """
        number, sent, seconds = self._call(self._begin_push, run).result(), 0, 0.0
        for part in parts:
            pushed = self._call(self._push_part, run, version, part, number, sent > 0).result()
            sent, seconds = sent + pushed.bytes, seconds + pushed.cpu_seconds
            del part  # before the next one comes
        self._call(self._end_push, run, version, number).result()
        return Pushed(sent, seconds)

    def drop(self, run: str) -> "Future[None]":
        """Forget a run that is finished, and free its memory. Its requests in flight are aborted."""
        return self._call(self._drop, run)

    def reset(self) -> "Future[None]":
        """Return to the state after the start: awake, without runs, requests, cached prompts and measured batching.

        Requests in flight are aborted: their callers are gone.
        """
        return self._call(self._reset)

    def sleep(self) -> "Future[None]":
        """Free the GPU: the base's weights move to host memory, the KV cache is dropped, the runs' overlays
        stay, and can be pushed and dropped meanwhile. Requests are refused until `wake`.

        Requests in flight are aborted: their callers have retried or are gone.
        """
        return self._call(self._sleep)

    def wake(self) -> "Future[None]":
        """Restore the state before `sleep`."""
        return self._call(self._wake)

    def capture(self) -> "Future[None]":
        """Capture CUDA graphs now if weights of other modules came or went, rather than some steps later."""
        return self._call(self._capture)

    def replays(self) -> "Future[int]":
        """Return how many batches have been replays of a CUDA graph so far."""
        return self._call(lambda: self._engine.collective_rpc("replays")[0])

    def stuck_for(self) -> float:
        """Return the seconds since the last step that ended, while there is work; 0 without work.

        Raises:
            EngineStopped: the engine failed and answers no more requests.
        """
        if self._failure:
            raise self._failure
        return time.monotonic() - self._moved if self._active or self._waiting else 0.0

    def _call(self, function: Callable[..., Any], *args: Any) -> Future:
        """Have the stepping thread call a function when no batch is in flight."""
        future = uncancelled()

        def command() -> None:
            try:
                if self._failure:
                    raise self._failure
                self._drain()
                future.set_result(function(*args))
            except Exception as error:  # handed to the caller
                future.set_exception(error)

        self._commands.put(command)
        return future

    def _push(self, run: str, version: int, weights: Mapping[str, Any]) -> Pushed:
        number = self._begin_push(run)
        pushed = self._push_part(run, version, weights, number)
        self._end_push(run, version, number)
        return pushed

    def _begin_push(self, run: str) -> int:
        """Return the number of this push; nothing is served of the run until its end."""
        self._abort_run(run, f"{run}: its weights were replaced meanwhile")
        self._versions.pop(run, None)
        self._pushed += 1
        self._pushes[run] = self._pushed
        return self._pushed

    def _push_part(self, run: str, version: int, weights: Mapping[str, Any], number: int, more: bool = False) -> Pushed:
        self._check_newest(run, number)
        began = time.thread_time()
        if more:
            sent = self._engine.collective_rpc("extend_overlay", args=(run, weights))
        else:
            sent = self._engine.collective_rpc("push_overlay", args=(run, version, weights))
        return Pushed(sent[0], time.thread_time() - began)

    def _end_push(self, run: str, version: int, number: int) -> None:
        self._check_newest(run, number)
        self._versions[run] = version
        self._note_structure()

    def _check_newest(self, run: str, number: int) -> None:
        if self._pushes.get(run) != number:
            raise StaleWeights(f"{run}: other weights were pushed meanwhile")

    def _drop(self, run: str) -> None:
        self._abort_run(run, f"{run}: it was dropped meanwhile")
        self._engine.collective_rpc("drop_overlay", args=(run,))
        self._versions.pop(run, None)
        self._pushes.pop(run, None)
        self._note_structure()

    def _slot_structure(self) -> int | None:
        return self._engine.collective_rpc("slot_structure")[0] if self.cuda_graphs else None

    def _note_structure(self) -> None:
        """Have graphs captured anew in a while, if the static slots' structure has changed."""
        if (structure := self._slot_structure()) != self._structure:
            self._structure, self._until_capture = structure, SETTLED

    def _capture(self) -> None:
        self._until_capture = 0
        self._engine.collective_rpc("capture_graphs")

    def _reset(self) -> None:
        self._abort_all("the engine was reset meanwhile")
        for run in list(self._pushes):
            self._drop(run)
        if self._asleep:
            self._wake()
        self._engine.reset_prefix_cache()
        self.batching = AutoBatching(mixed=self._config.batching != "swap")

    def _sleep(self) -> None:
        self._abort_all("the engine was put to sleep meanwhile")
        self._engine.sleep(level=1)  # drops the prefix cache too
        self._asleep = True

    def _wake(self) -> None:
        self._engine.wake_up()
        self._asleep = False

    def _abort_all(self, reason: str) -> None:
        for run in {request.run for request in [*self._waiting, *self._active.values()]}:
            self._abort_run(run, reason)

    def _abort_run(self, run: str | None, reason: str) -> None:
        stale = [request for request in self._waiting if request.run == run]
        for request in stale:
            self._waiting.remove(request)
        for number, request in list(self._active.items()):
            if request.run == run:
                del self._active[number]
                self._engine.abort_request(request.names, internal=True)
                stale.append(request)
        for request in stale:
            request.done.set_exception(StaleWeights(reason))

    def _loop(self) -> None:
        while True:
            while not self._commands.empty() or not (self._waiting or self._active):
                command = self._commands.get()
                if not (self._waiting or self._active):
                    self._moved = time.monotonic()  # the wait was for work
                command()
                del command  # and with it weights that were pushed
            try:
                if self._failure:
                    raise self._failure
                self._admit()
                if self._engine.has_unfinished_requests():
                    self._step()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Fail all requests: vLLM's state is unknown after an error, and none is answered any more."""
        if not self._failure:
            self._failure = EngineStopped(f"the engine stopped: {error!r}")
            self._failure.__cause__ = error
        for request in [*self._waiting, *self._active.values()]:
            request.done.set_exception(self._failure)
        self._waiting.clear()
        self._active.clear()

    def _admit(self) -> None:
        """Admit waiting requests: all if mixed; in swap mode one run's until they are done."""
        if self.batching.draining:
            if self._active:
                return
            self.batching.drained()
        for request in list(self._waiting):
            if not self.batching.mixed and any(other.run != request.run for other in self._active.values()):
                continue
            self._waiting.remove(request)
            try:
                self._start(request)
            except (ValueError, StaleWeights) as error:
                request.done.set_exception(error)

    def _start(self, request: EngineRequest) -> None:
        if self._asleep:
            raise StaleWeights("the engine is asleep: trainers use its GPU")
        serving = self._versions.get(request.run, 0) if request.run else 0
        if request.version != serving:
            raise StaleWeights(f"{request.run}: asked for version {request.version}, the engine has {serving}")
        sampling, self._numbers = request.sampling, self._numbers + 1
        if sampling.stop and self._engine.output_processor.tokenizer is None:
            # Only stop strings need text; without them the engine starts and steps without a tokenizer.
            self._engine.output_processor.tokenizer = get_tokenizer(self._model)
        overlay = request.run if serving else None  # version 0 is the base itself
        added = request.names
        try:
            for i, (prompt, seed) in enumerate(zip(request.prompts, request.seeds, strict=True)):
                params = SamplingParams(
                    n=sampling.samples,
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_tokens,
                    seed=seed,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    min_p=sampling.min_p,
                    stop_token_ids=list(sampling.stop_token_ids),
                    stop=list(sampling.stop),
                    logprobs=0 if sampling.logprobs else None,
                    flat_logprobs=True,
                    detokenize=bool(sampling.stop),
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    extra_args={RUN: overlay} if overlay else None,
                )
                tokens = {"prompt_token_ids": prompt.tolist()}
                if self._config.prefix_caching:
                    # By push, not by version: a run that was set back trains another version 7 than before.
                    tokens["cache_salt"] = f"{overlay}-{self._pushes[overlay]}" if overlay else "base"
                # Trainers wait for batches with log-probabilities; nothing but its own run's end for an evaluation.
                priority = 0 if sampling.logprobs else 1
                added.append(self._engine.add_request(f"{self._numbers}/{i}", tokens, params, priority=priority))
        except (ValueError, VLLMValidationError) as error:
            self._engine.abort_request(added, internal=True)
            raise ValueError(str(error)) from error
        self._active[self._numbers] = request

    def _step(self) -> None:
        if self._until_capture:
            self._until_capture -= 1
            if not self._until_capture:
                self._drain()
                self._capture()
        self._advance()

    def _drain(self) -> None:
        """Finish the batches in flight, if there are any, and schedule none meanwhile.

        Raises:
            EngineStopped: that failed, and with it the engine.
        """
        if not self._core.batch_queue:
            return
        try:
            self._core.pause_scheduler("keep", clear_cache=False)
            while self._core.batch_queue:
                self._advance()
            self._core.resume_scheduler()
        except Exception as error:
            self._fail(error)
            raise self._failure from error

    def _advance(self) -> None:
        """Have vLLM take a step, and hand out what is finished."""
        began = self._clock()
        runs = len({request.run for request in [*self._waiting, *self._active.values()]})
        outputs = self._engine.step()
        spent = self._clock() - began
        self._moved = time.monotonic()
        self.cpu_seconds += spent
        for request in self._active.values():
            request.cpu_seconds += spent / len(self._active)
        tokens = finished = 0
        for output in outputs:
            number, prompt = map(int, output.request_id.split("/"))
            request = self._active[number]
            first = prompt * request.sampling.samples
            for completion in output.outputs:
                if request.outputs[first + completion.index] is None:
                    request.outputs[first + completion.index] = completion
                    request.missing -= 1
            if not request.missing:
                del self._active[number]
                done = request.completions()
                self.tokens += len(done.tokens)
                tokens, finished = tokens + len(done.tokens), finished + 1
                request.done.set_result(done)
        if self._config.batching == "auto":
            self.batching.observe(tokens, spent, finished, runs)
