"""Paths and URIs told apart: what a local file may be called, and the protocols there are."""

import os

import pytest

from layersweep.rollout.data.locations import local_path, open_filesystem, refuse_unknown_protocol


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("a.jsonl", "a.jsonl"),
        ("a::b.jsonl", "a::b.jsonl"),  # fsspec by itself takes it for a chain
        ("/data/a::b.jsonl", "/data/a::b.jsonl"),
        ("/data/s3://b", "/data/s3://b"),
        ("~/a", "~/a"),
        ("s3:/bucket", "s3:/bucket"),
        ("file:///data/a", "/data/a"),
        ("local:///data/a", "/data/a"),
        ("file://a", "a"),
        ("s3://bucket/a", None),
        ("simplecache::s3://bucket/a", None),
        ("zip://a.jsonl::/data/a.zip", None),
    ],
)
def test_local_paths(location, path):
    assert local_path(location) == path


def test_a_local_file_is_opened_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a::b.jsonl", "c.jsonl", "d:e"):
        (tmp_path / name).write_text(name)
        for location in (name, str(tmp_path / name), f"file://{tmp_path / name}"):
            filesystem, path = open_filesystem(location)
            assert path == os.path.join(tmp_path, name)
            assert filesystem.cat_file(path) == name.encode()


@pytest.mark.parametrize("location", ["a", "a::b", "s3://b/a", "simplecache::s3://b/a", "zip://a/b::c.zip", "file://a"])
def test_protocols_that_there_are(location):
    refuse_unknown_protocol(location)


@pytest.mark.parametrize(("location", "named"), [("foo://a", "foo"), ("s4://b", "s4"), ("zip://a::foo://b", "foo")])
def test_protocols_that_there_are_not(location, named):
    with pytest.raises(ValueError, match=f"^{location}: {named}:// is no protocol"):
        refuse_unknown_protocol(location)
