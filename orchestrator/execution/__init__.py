"""Everything that lives while a sweep runs. `driver` opens with a drawing of the loops.

- Start: `launch` (run, resume), `background` (a sweep in a process of its own), `own_session` and `ray_session`
  (signals; joining or starting Ray), `sweep_session` (Ray and engines from one sweep to the next), `ray_nodes` (waiting
  for room), `sweep_folder`, `sweep_lock` (heartbeats), `manifest` (what must not change on resume).
- Sweep: `driver`, `context` (what runs share), `progress`, `base_score`, `evaluation`, `decisions` (what is chosen by
  scores), `learning_rate_trials`, `halving_barrier`; `factorial` (several sweeps in turn).
- One run: `run_controller` (the training loop), `run_state`, `run_checkpointer`, `run_recovery` (retries),
  `weight_sync`, `step_checks`; `made_run` (weights made of a finished run's, without training).
- Besides sweeps: `variant_scoring` (dissect, compose), `probing` and `screening` (probe).
- Actors: `actors` (creates and places them), `clients` (their methods, typed), `engine_pool`, `engine_slot`,
  `shared_gpus`.
- Waiting and failing: `slots` (semaphores for runs, updates and GPUs), `sleep_phases`, `failures` (what is retried,
  timeouts), `health` (are actors and nodes alive?).
"""
