"""What runs inside a sandbox: standard library only, one process start per sandbox, so imports are kept few.

`warden` speaks with the caller and forks a confined child (`confine`) for every program; `guest` is what that child
does; `wire` turns Python values into lines of JSON and back.
"""
