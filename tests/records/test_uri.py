"""What of a URI is shown and remembered."""

from __future__ import annotations

import pytest

from elsa_ray.records.uri import StorageUri

SHOWN_AND_BARE = {
    "s3://bucket/run": ("s3://bucket/run", "s3://bucket/run"),
    "s3://KEY:secret@bucket/a@b/run": ("s3://***@bucket/a@b/run", "s3://bucket/a@b/run"),
    "s3://bucket/a@b:c/run?region=x": ("s3://bucket/a@b:c/run?region=x", "s3://bucket/a@b:c/run?region=x"),
    "s3://KEY@bucket/run": ("s3://***@bucket/run", "s3://bucket/run"),
    "s3://KEY:sec/r?t#x@bucket/run": ("s3://***@bucket/run", "s3://bucket/run"),
    "s3://KEY:1234/secret@bucket/run": ("s3://***@bucket/run", "s3://bucket/run"),
    "s3://KEY:sec@ret@bucket/run": ("s3://***@bucket/run", "s3://bucket/run"),
    "gs://anonymous@bucket/run": ("gs://anonymous@bucket/run", "gs://anonymous@bucket/run"),
    "abfs://box:secret@account.net/run": ("abfs://box:***@account.net/run", "abfs://box@account.net/run"),
    "abfs://:secret@account.net/run": ("abfs://***@account.net/run", "abfs://account.net/run"),
    "abfs://box@account.net/run?client_id=me&client_secret=se=cret": (
        "abfs://box@account.net/run?client_id=me&client_secret=***",
        "abfs://box@account.net/run?client_id=me",
    ),
    "s3://bucket/run?endpoint_override=http://KEY:secret@host": (
        "s3://bucket/run?endpoint_override=***",
        "s3://bucket/run",
    ),
    "hdfs://host:8020/a@b/run": ("hdfs://host:8020/a@b/run", "hdfs://host:8020/a@b/run"),
    "file:///shared/me@here:1/run": ("file:///shared/me@here:1/run", "file:///shared/me@here:1/run"),
}


@pytest.mark.parametrize("full", SHOWN_AND_BARE)
def test_credentials_are_masked_or_left_out(full: str) -> None:
    uri = StorageUri(full)
    assert (uri.shown, uri.bare) == SHOWN_AND_BARE[full]
    assert "secret" not in repr(uri) and StorageUri(uri.bare).shown == uri.bare


def test_a_text_that_repeats_them_is_masked_whether_they_are_encoded_or_not() -> None:
    uri = StorageUri("s3://AKIA:se%2Fcret@bucket/run?token=a%20b%20c&region=eu")
    text = "s3://AKIA:se%2Fcret@bucket/run?token=a%20b%20c&region=eu: AKIA may not, by se/cret, se%2Fcret, a b c; eu"
    assert uri.hide(text) == "s3://***@bucket/run?token=***&region=eu: *** may not, by ***, ***, ***; eu"
