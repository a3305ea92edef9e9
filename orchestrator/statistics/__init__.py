"""The contribution table and its errors, from scores alone: numpy and pandas, no Ray, no spec.

- `contribution`: C(k) with intervals and ranks, by `score_arrays`, `intervals` (Fieller), `depth_gp`, `seeds`;
  `contribution_table` adds what is known of the runs.
- `halving_schedule`: rungs of a search, and which layers survive one.
- `layer_profile`, `profile_agreement`: do two sweeps rank layers alike?
- `early_signals`, `solved_prompts`: the report's further questions.
"""
