"""Code that runs inside a sandbox: standard library only, one process start per sandbox, so imports are kept few.

`supervisor` speaks with the caller and forks a confined child (`confine`) for every program; `child` is what that
process does; `common_names` are names that programs find beside Python's builtins; `value_codec` turns Python values
into lines of JSON and back.
"""
