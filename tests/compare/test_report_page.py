"""`train.py report`: any folders in one page that opens offline and executes nothing that it shows."""

import base64
import hashlib
import importlib.util
import json
import re
import urllib.parse
from html.parser import HTMLParser

import pytest

from helpers.chromium import CHROMIUM, chromium
from helpers.tiny import tiny
from seqzoo import cli, plugins
from seqzoo.compare import joined
from seqzoo.compare.store import Store
from seqzoo.config import Comparison

ATTACK = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
STEPS = (2, 4, 6)


def write(folder, experiment, final, parameters=10, size=1024, **summary):
    """A run folder; `final` {eval set: accuracy}, or None for a run that still trains."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(experiment.model_dump_json())
    scores = final or {"pairs=1": 0.2, "pairs=2": 0.1}
    lines = [{"step": step, "kind": "train", "loss": 3.0 / step} for step in STEPS]
    lines += [
        {"step": step, "kind": "eval", "eval_set": name, "accuracy": score * step / 6, "loss": 1.0}
        for step in STEPS
        for name, score in scores.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if final is not None:
        result = {
            name: {"accuracy": score, "loss": 1.0, "chance": 0.0625, "settings": {"pairs": number, "length": 16}}
            for number, (name, score) in enumerate(final.items(), 1)
        }
        ending = {"early": False, "ended": "budget", "still_learning": False}
        costs = {"step": 6, "parameters": parameters, "state_bytes": size, "tokens_per_second": 1e4}
        parts = {"final": result, "best": result, "test": result}
        (folder / "summary.json").write_text(json.dumps({"finished": True, **ending, **costs, **parts, **summary}))
    return folder


def comparison(folder, runs, **base):
    """A comparison's folder with runs of (layers, seed, accuracy or None, state bytes, more of the summary)."""
    layers = dict.fromkeys(each[0] for each in runs)
    axes = {"mixer": {"x" + "".join(name): {"model.layers": name} for name in layers}, "training.seed": (0, 1)}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(Comparison(base=tiny(**base), axes=axes).model_dump_json())
    for number, (name, seed, score, size, more) in enumerate(runs):
        final = score and {"pairs=1": score, "pairs=2": score / 2}
        experiment = tiny(model__layers=name, training__seed=seed, **base)
        write(folder / "runs" / f"{number}-run", experiment, final, size=size, **more)
    return folder


FRONT = "base_conv(conv_size=3)"
RUNS = [
    ((FRONT, "softmax(heads=2)"), 0, 0.9, 4096, {}),
    ((FRONT, "softmax(heads=2)"), 1, 0.8, 4096, {}),
    ((FRONT, "gla(heads=2)"), 0, 0.5, 1024, {"still_learning": True}),
    ((FRONT, "gla(heads=1)"), 0, 0.6, 2048, {}),
    ((FRONT, "mamba(expand=1)"), 0, None, 0, {}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two comparisons, one of them unfinished."""
    parent = tmp_path_factory.mktemp("reports")
    comparison(parent / "one", RUNS)
    comparison(parent / "two", [((FRONT, "kda"), 0, 0.7, 1024, {})])
    return parent


@pytest.fixture(scope="module")
def written(folders):
    """The folder of the report of both."""
    assert cli.main(["report", str(folders / "one"), str(folders / "two"), "--out", str(folders / "out")]) == 0
    return folders / "out"


class Reader(HTMLParser):
    """Scripts, links, table cells and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.attributes, self.tags, self._open = [], [], [], []
        self.rows, self.policy = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "meta" and dict(attrs).get("http-equiv"):
            self.policy = dict(attrs)["content"]
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "input", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data


def test_folders_are_joined_and_ranked_and_what_still_learns_or_trains_has_no_rank(written):
    head, *rows = Reader((written / "report.html").read_text()).rows
    named = {row[1].split()[0]: dict(zip(head, row, strict=False)) for row in rows if row[1] != "chance"}
    assert list(named) == ["softmax", "kda", "gla(heads=1)", "gla(heads=2)", "mamba"]
    assert [each["rank"] for each in named.values()] == ["1", "2", "3", "", ""]
    assert named["gla(heads=2)"]["status"] == "still learning" and named["mamba"]["status"] == "at step 6 of 6"
    assert named["softmax"]["pairs=1"].split() == ["0.850", "0.800-0.900"] and named["softmax"]["config by seed"].split() == [
        "0",
        "1",
    ]
    assert named["kda"]["family"] == "delta rule" and named["kda"]["state bytes"] == "1,024"
    text = (written / "report.md").read_text()
    assert "| 1 | `softmax` | 0.850 (0.800-0.900) |" in text and "![Test accuracy against state size](state_bytes.png)" in text
    assert f"* `softmax`: `{FRONT}, softmax(heads=2)`" in text
    assert {path.name for path in written.iterdir()} >= {"learning_curves.png", "eval_sets.png", "state_bytes.png"}


def test_sizes_of_one_mixer_are_one_curve(folders):
    found = joined.read([folders / "one", folders / "two"]).sizes()
    sizes = {name: sorted((point.state_bytes, point.still_learning) for _, point in points) for name, points in found.items()}
    assert sizes == {"softmax": [(4096, False)], "gla": [(1024, True), (2048, False)], "kda": [(1024, False)]}


def test_a_row_of_a_comparison_with_budgets_is_at_its_best_choice_and_its_budgets_are_one_curve(tmp_path):
    axes = {"model.layers": (("gla",), ("softmax(window=...)",)), "optimizer.learning_rate": (1e-3, 1e-2)}
    sized = Comparison(base=tiny(model__d_model=32), axes=axes, match="state_bytes", budget=(2048, 4096))
    store = Store(tmp_path / "sized", sized)
    store.folder.mkdir()
    (store.folder / "config.json").write_text(sized.model_dump_json())
    for run in store.runs():
        budget = run.point["budget"]
        score = (0.6 if run.rate == 1e-2 else 0.3) + budget / 20_000 + (0.05 if "heads=1" in run.point["shape"] else 0.0)
        write(store.place(run), store.experiments[run.name], {"pairs=1": score}, size=budget)
    found = joined.read([store.folder])
    assert {entry.label for entry in found.entries} == {f"{name} {kib} KiB" for name in ("gla", "softmax") for kib in (2, 4)}
    assert all(entry.shown[0].run.rate == 1e-2 for entry in found.entries) and len(found.runs) > len(found.entries)
    assert {name: [point.state_bytes for _, point in points] for name, points in found.sizes().items()} == {
        "gla": [4096, 2048],
        "softmax": [4096, 2048],
    }


def test_the_page_loads_nothing_and_its_links_lead_to_the_configs(written):
    text = (written / "report.html").read_text()
    page = Reader(text)
    loading = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    targets = [written / urllib.parse.unquote(value) for value in loading]
    assert len(targets) == 6 and all(path.name == "config.json" and path.is_file() for path in targets)
    assert page.policy.startswith("default-src 'none'; script-src 'sha256-") and "http" not in page.policy
    styles = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import", styles) and "link" not in page.tags and len(text) < 5e6


def test_text_of_a_run_folder_is_never_markup_or_code(tmp_path):
    with plugins.skip_imports():
        one = tiny(model__layers=(f"mine(a={ATTACK!r})",))
        other = tiny(model__layers=("mine(a='|`b`$x$')",))
        write(tmp_path / ATTACK.replace("/", "_"), one, {ATTACK: 0.5, "b": 0.4}, ended=ATTACK)
        write(tmp_path / "other", other, {ATTACK: 0.5, "b": 0.4}).joinpath("summary.json").write_text(
            json.dumps({"stopped": ATTACK})
        )
    folders = [str(path) for path in tmp_path.iterdir()]
    assert cli.main(["report", *folders, "--out", str(tmp_path / "out"), "--no-imports"]) == 0
    page = Reader((tmp_path / "out" / "report.html").read_text())
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in page.scripts]
    assert re.findall(r"'sha256-([^']+)'", page.policy) == digests  # ours alone, each as we wrote it
    assert "img" not in page.tags and not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert ATTACK in " ".join(cell for row in page.rows for cell in row)  # shown as it is
    assert "<" not in (tmp_path / "out" / "report.md").read_text()


def test_a_comparison_is_reported_in_its_own_folder_and_a_run_alone_too(tmp_path, capsys):
    place = comparison(tmp_path / "one", [(("gla",), 0, None, 0, {})])  # no result yet, so that no figure is drawn
    assert cli.main(["report", str(place)]) == 0 and (place / "report" / "report.html").is_file()
    damaged = place / "runs" / "0-run"
    (damaged / "summary.json").write_text("{")
    assert cli.main(["report", str(damaged)]) == 0
    assert "is damaged" in (damaged / "report" / "report.md").read_text() and not (damaged / "report" / "state_bytes.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "report needs folders"),
        (["none"], 2, "none is not a run folder"),
        (["one", "--outt", "x"], 2, "--outt"),
        (["one", "--out", "one/config.json"], 1, "cannot write one/config.json"),
    ],
)
def test_wrong_arguments_of_report_are_one_line(folders, monkeypatch, capsys, words, code, says):
    monkeypatch.chdir(folders)
    assert cli.main(["report", *words]) == code
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_missing_library_is_named_with_its_extra(folders, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bokeh" else real(name, *more))
    assert cli.main(["report", str(folders / "one")]) == 2
    assert 'the report needs bokeh, not installed; wanted pip install "seqzoo[report]"' in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_sorts_and_filters_table_and_curves_without_a_network(written, tmp_path, width):
    name = "(row) => row.querySelector('.name').innerText.trim()"
    visible = f"[...document.querySelectorAll('#table tbody tr')].filter((row) => row.offsetParent).map({name})"
    curves = "Bokeh.documents[0].roots().map((f) => f.renderers.filter((r) => r.visible).length)"
    with chromium(tmp_path) as page:
        page.open((written / "report.html").as_uri(), width)
        page.wait_for("window.Bokeh && Bokeh.documents.length > 0 && document.querySelectorAll('.bk-Figure').length == 4")
        assert page.evaluate(visible) == ["softmax", "kda", "gla(heads=1)", "gla(heads=2)", "mamba"]
        before = page.evaluate(curves)
        click = lambda selector: page.evaluate(f"document.querySelector({selector!r}).click()")
        click("#table th:nth-child(4) button")
        assert page.evaluate(visible) == ["gla(heads=2)", "gla(heads=1)", "kda", "softmax", "mamba"]  # without a number: last
        click("#table th:nth-child(4) button")
        assert page.evaluate(visible)[:2] == ["softmax", "kda"]
        click(".family[value=linear_attention]")
        assert page.evaluate(visible) == ["softmax", "kda", "mamba"]
        assert all(now < was for now, was in zip(page.evaluate(curves), before, strict=True))
        click(".family[value=linear_attention]")
        page.evaluate("search.value = 'heads=1'; search.dispatchEvent(new Event('input', {bubbles: true}))")
        assert page.evaluate(visible) == ["gla(heads=1)"]
        page.evaluate("search.value = ''; evalSet.value = '2'; evalSet.dispatchEvent(new Event('input', {bubbles: true}))")
        drawn = "Bokeh.documents[0].roots()[3].renderers.map((r) => (r.glyph.y ?? r.glyph.y0).field)"
        assert set(page.evaluate(drawn)) == {"y2", "low2"}  # of the second evaluation set, after the mean
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # only the table scrolls
        assert page.errors == []
