"""The workaround for TensorStore's leak, and the condition under which it can be deleted."""

import json
import sys

import tensorstore

from seqzoo.training.run.tensorstore_leak import without_leak


def test_tensorstore_still_leaks_the_json_that_it_gives(tmp_path):
    """If this fails, delete seqzoo/training/run/tensorstore_leak.py."""
    found = tensorstore.KvStore.Spec({"driver": "file", "path": f"{tmp_path}/"}).to_json()
    freed = json.loads(json.dumps(found))
    assert sys.getrefcount(found["path"]) > sys.getrefcount(freed["path"])


def test_specs_without_the_leak_are_those_that_orbax_makes(tmp_path):
    from orbax.checkpoint._src.serialization import tensorstore_utils

    make = lambda: tensorstore_utils.build_kvstore_tspec(str(tmp_path), use_ocdbt=True, name="a")
    wanted = make()
    with without_leak():
        assert make() == wanted and tensorstore_utils.get_tensorstore_raw_bytes() == 0
    assert make() == wanted
