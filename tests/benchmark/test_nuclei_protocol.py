"""hovernet and its settings, sets of nuclei as tasks, and what fits what."""

from __future__ import annotations

import pytest

from eosin.benchmark.nuclei_protocol import fitting_tasks, open_asked, open_hovernet
from eosin.benchmark.nuclei_task import is_nuclei_spec, open_nuclei_task
from eosin.core.errors import EosinError
from eosin.evaluate import PROTOCOLS


def test_variants_are_phases_of_the_training():
    frozen, whole = open_hovernet("hovernet")
    assert (frozen.shown, frozen.config.phases) == ("hovernet:frozen", ("decoder",))
    assert (whole.shown, whole.config.phases) == ("hovernet:finetune", ("decoder", "whole"))
    # As published, where nothing else is said.
    assert (whole.config.decoder.epochs, whole.config.whole.batch_size, whole.config.network.width) == (50, 4, 1.0)


def test_settings_are_fields_by_their_short_or_dotted_names():
    (asked,) = open_hovernet("hovernet:finetune?recipe=nuclei-small&epochs=2&whole.epochs=3&lr=1e-3&width=0.5")
    assert asked.shown == "hovernet:finetune?recipe=nuclei-small&epochs=2&whole.epochs=3&lr=1e-3&width=0.5"
    config = asked.config
    assert (config.decoder.epochs, config.whole.epochs) == (2, 3)
    # The recipe's number of windows would hide the epochs.
    assert (config.decoder.samples, config.whole.samples) == (None, None)
    assert (config.decoder.lr, config.whole.lr, config.network.width) == (1e-3, 1e-3, 0.5)
    (asked,) = open_hovernet("hovernet:frozen?whole.lr=0.5&lr=0.1&loss.np_dice=2&augment.rotation=0")
    assert (asked.config.whole.lr, asked.config.decoder.lr) == (0.5, 0.1)
    assert asked.config.loss.np_dice == 2
    assert asked.config.augment.rotation == 0


def test_what_determines_a_training_is_in_its_settings():
    plain = open_hovernet("hovernet:frozen")[0].settings()
    assert plain != open_hovernet("hovernet:finetune")[0].settings()
    assert plain != open_hovernet("hovernet:frozen?loss.hv_mse=2")[0].settings()
    assert plain == open_hovernet("hovernet:frozen?width=1")[0].settings()
    # Fields that came later: results from before them stay known.
    assert "targets" not in plain
    assert "trunk" not in plain["network"]
    assert open_hovernet("hovernet:frozen?trunk=pyramid")[0].settings()["network"]["trunk"] == "pyramid"
    exact = open_hovernet("hovernet:frozen?targets.center=exact")[0].settings()
    assert exact == plain | {"targets": {"center": "exact", "small": 30}}
    # What the benchmark sets cell by cell, and what changes nothing.
    assert not plain.keys() & {"seed", "data", "device", "precision", "log", "checkpoint", "summary"}
    assert "encoder" not in plain["network"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("hovernet:frozn", "unknown variant 'frozn'; did you mean 'frozen'"),
        ("hovernet?widht=1", "unknown setting 'widht'; did you mean 'width'"),
        ("hovernet?width", "'width' is no setting"),
        ("hovernet?width=1&width=2", "'width' is given twice"),
        ("hovernet?width=-1", "network.width.*greater than 0"),
        ("hovernet?window=100", "geometry fast does not take it; use 104"),
        ("hovernet?recipe=hovernit", "unknown recipe 'hovernit'"),
        ("hovernet?seed=3", "'seed' is one of --seeds"),
        ("hovernet?data.fraction=0.5", "'data.fraction' follows from the task, --fractions"),
        ("hovernet?network.encoder=x", "'network.encoder' is one of --encoders"),
        ("hovernet?phases=whole", "'phases' follows from the variant"),
    ],
)
def test_wrong_settings_are_refused_by_name(spec, reason):
    with pytest.raises(EosinError, match=reason):
        open_hovernet(spec)


def test_protocols_of_both_kinds_are_read_together():
    tiles, nuclei = open_asked(["knn", "hovernet:frozen", "hovernet"])
    assert [entry.shown for entry in tiles] == ["knn"]
    assert [entry.shown for entry in nuclei] == ["hovernet:frozen", "hovernet:finetune"]
    tiles, nuclei = open_asked(["all"])
    assert {entry.protocol.name for entry in tiles} == set(PROTOCOLS)
    assert len(nuclei) == 2
    with pytest.raises(EosinError, match="unknown protocol 'hovrnet'; did you mean 'hovernet'"):
        open_asked(["hovrnet"])


def test_a_set_of_nuclei_is_a_task():
    task = open_nuclei_task("nuclei:synthetic:?images=8&size=16&name=drawn")
    assert (task.name, task.synthetic, task.grouping, task.groups) == ("drawn", True, "group", 1)
    assert len(task.set.of("test")) == 1
    unnamed = open_nuclei_task("nuclei:synthetic:?images=8&size=16")
    assert unnamed.name == "synthetic"
    # A name changes nothing that was drawn, another size does.
    assert unnamed.content == task.content
    assert open_nuclei_task("nuclei:synthetic:?images=8&size=17").content != task.content
    assert is_nuclei_spec("nuclei:folder:x")
    assert not is_nuclei_spec("folder:nuclei")
    with pytest.raises(EosinError, match="give a set of nuclei"):
        open_nuclei_task("nuclei:")
    with pytest.raises(EosinError, match="unknown set of nuclei 'consept'; did you mean 'consep'"):
        open_nuclei_task("nuclei:consept:")


def test_tasks_without_a_protocol_are_left_out_with_a_word(capsys):
    tiles, nuclei = open_asked(["knn", "hovernet:frozen"])
    both = ["synthetic", "nuclei:synthetic:"]
    assert fitting_tasks(both, tiles, nuclei) == both
    assert fitting_tasks(both, tiles, []) == ["synthetic"]
    assert "add it to --protocols, such as hovernet:frozen" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(EosinError, match="no protocol fits a task: nuclei:synthetic:"):
        fitting_tasks(["nuclei:synthetic:"], tiles, [])
    with pytest.raises(EosinError, match="add a protocol such as knn"):
        fitting_tasks(["synthetic"], [], nuclei)
