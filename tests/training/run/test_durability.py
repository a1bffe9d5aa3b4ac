"""Power cuts: at each moment, a checkpoint that counts is on the disk as a whole, and so is what must come before it.

A cut loses what was not synced: the bytes of a file, and the names of a folder. Every sync and every renaming of a run is recorded.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.tiny import quiet, tiny
from seqzoo import training
from seqzoo.training.run.checkpoint import DIGESTS, WRITTEN_LATER


class Event(NamedTuple):
    """A sync of a file or folder, or a renaming to `path`."""

    renamed: bool
    path: Path
    sizes: dict[str, int]  # of the files in a folder, by their names


def contents(folder):
    return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def events(monkeypatch):
    """Syncs and renamings, in order; the files of a folder are those of that moment."""
    found = []
    sync = os.fsync

    def recorded_sync(opened):
        path = Path(os.readlink(f"/proc/self/fd/{opened}"))
        sync(opened)
        found.append(Event(False, path, contents(path) if path.is_dir() else {"": path.stat().st_size}))

    def recorded(rename):
        def call(source, target, *args, **kwargs):
            sizes = contents(Path(source)) if Path(source).is_dir() else {}
            rename(source, target, *args, **kwargs)
            found.append(Event(True, Path(target), sizes))

        return call

    monkeypatch.setattr(os, "fsync", recorded_sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, recorded(getattr(os, name)))
    return found


def synced(events, path, size):
    """Tells if a file was synced with as many bytes as it has in the end, and then its folder with its name."""
    for at, event in enumerate(events):
        if not event.renamed and event.path == path and event.sizes[""] == size:
            return any(not later.renamed and later.path == path.parent for later in events[at:])
    return False


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs the paths of open files")
def test_a_power_cut_at_any_moment_leaves_whole_checkpoints_and_what_comes_before_them(tmp_path, events):
    folder = tmp_path / "run"
    training.train(tiny(training__keep=9), folder, console=quiet())
    checkpoints = folder / "checkpoints"
    begun = [event for event in events if event.renamed and event.path.parent == checkpoints]
    assert [event.path.name for event in begun] == ["2", "4", "6"]
    for at, event in enumerate(events):
        earlier = events[:at]  # a cut right after this event loses nothing of what these made durable, and no more is known
        if event in begun:  # a checkpoint: all its files and their names are on the disk, and what a run needs besides it
            temporary = next(each.path.parent for each in reversed(earlier) if each.renamed and each.path.name == DIGESTS)
            assert DIGESTS in event.sizes and "manifest.ocdbt" in event.sizes
            for name, size in event.sizes.items():
                path = temporary / name
                whole = synced(earlier, path, size) or any(each.renamed and each.path == path for each in earlier)
                assert whole or name in WRITTEN_LATER, f"{name} of checkpoint {event.path.name}"
            assert synced_name(earlier, temporary / DIGESTS), "the digests are the last file of a checkpoint"
            assert synced_name(earlier, folder / "config.json")
            assert any(each.path == folder / "metrics.jsonl" and not each.renamed for each in earlier)
        if event.renamed and event.path == folder / "saved.json":  # the record: the checkpoint's name is on the disk
            made = [each.path for each in earlier if each in begun]
            assert not made or synced_name(earlier, made[-1]), f"the record after {made[-1].name}"


def synced_name(events, path):
    """Tells if a folder was synced after the renaming to a name in it."""
    at = max(number for number, event in enumerate(events) if event.renamed and event.path == path)
    return any(not event.renamed and event.path == path.parent for event in events[at:])


def test_every_file_is_synced_before_it_takes_the_place_of_another_and_its_folder_after(tmp_path, events):
    from seqzoo.data.atomic_io import write_json

    write_json(tmp_path / "a.json", {"a": 1})
    kinds = [(event.renamed, event.path.name if event.renamed else event.path.name.partition(".")[0]) for event in events]
    assert kinds == [(False, "a"), (True, "a.json"), (False, tmp_path.name)]
