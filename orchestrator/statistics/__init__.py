"""The contribution table and its errors, from scores alone: numpy and pandas, no Ray, no spec."""
