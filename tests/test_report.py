"""The report: what its page says of made-up data, that it needs nothing from outside, and how it looks in a browser."""

import base64
import json
import os
import shutil
import struct
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import make_figures
import parity_findings
import pcfg_findings
import pytest
import report
from report import read_times

from common.errors import UserError
from common.runs.files import write_file
from parity_mlp import probe, train
from tests.commands import exit_code, python

ROOT = Path(__file__).resolve().parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PASSES = [0.5, 0.5, 0.97, 1.0]
NEVER = [0.5, 0.5, 0.5, 0.5]
STEPS = [0, 100, 200, 300]


def parity_students(*accuracies):
    return {"seeds": [*range(len(accuracies))], "steps": STEPS, "first_steps": 100, "accuracy": [*accuracies]}


def parity_data(**students):
    return {
        "teacher": {"arguments": {"d": 9, "k": 3, "seed": 4}, "steps": STEPS, "accuracy": PASSES},
        "students": students,
    }


def holds(finding):
    return [verdict.holds for verdict in finding.verdicts]


@pytest.mark.parametrize(
    ("progressive", "one_shot", "expected"),
    [
        ([PASSES, PASSES], [NEVER, NEVER], True),
        ([PASSES, NEVER], [NEVER, NEVER], False),
        ([PASSES, PASSES], [NEVER, PASSES], False),  # at the same step is not before
        ([PASSES, PASSES], [[0.5, 0.5, 0.5, 0.96], NEVER], True),
        ([PASSES, PASSES], [[0.5, 0.96, 1, 1], NEVER], False),
    ],
)
def test_who_passes_first_is_said_seed_by_seed(progressive, one_shot, expected):
    data = parity_data(**{"one-shot": parity_students(*one_shot), "progressive": parity_students(*progressive)})
    finding = parity_findings.overview(data)
    assert holds(finding) == [expected]


def test_the_table_of_parity_has_the_numbers_of_the_data():
    one_shot = parity_students([0.5, 0.5, 0.5, 0.96], NEVER)
    data = parity_data(**{"one-shot": one_shot, "progressive": parity_students(PASSES, PASSES)})
    (table,) = parity_findings.overview(data).tables
    assert table.rows[:3] == [
        ["teacher", "4", "200", "1.000", "300"],
        ["one-shot", "0, 1", "300, –", "0.730 (0.500 to 0.960)", "300"],
        ["progressive", "0, 1", "200, 200", "1.000 (1.000 to 1.000)", "300"],
    ]


def two_shot_data(before, inside, correlation):
    """Two-shot students that end with these accuracies, and correlations of the support before, inside and after."""
    places = {"before": before, "inside": inside, "after": [0.5, 0.5]}
    return {
        "two_shot": {
            place: parity_students(*([0.5, 0.6, 0.7, final] for final in finals)) for place, finals in places.items()
        },
        "candidates": {"before": 100, "inside": 200, "after": 300},
        "phases": {"start": 150, "steepest": 200, "end": 250},
        "monomials": {
            "samples": 7,
            "steps": [100, 200, 300],
            "degrees": [
                {
                    "degree": degree,
                    "inside": [[value, value] for value in correlation],
                    "outside_percentiles": [[0, 0.01, 0.05]] * 3,
                }
                for degree in (1, 2)
            ],
        },
        "teacher": {"arguments": {"k": 3}},
    }


@pytest.mark.parametrize(
    ("before", "inside", "correlation", "expected"),
    [
        ([0.5, 0.6], [0.9, 0.7], [0.02, 0.1, 0.01], [True, True, True, True]),
        ([0.5, 0.8], [0.9, 0.7], [0.02, 0.04, 0.01], [False, True, False, True]),
        ([0.5, 0.6], [0.9, 0.5], [0.2, 0.1, 0.01], [False, False, True, False]),
    ],
)
def test_what_a_checkpoint_inside_leaks_is_said_of_the_numbers(before, inside, correlation, expected):
    finding = parity_findings.spike(two_shot_data(before, inside, correlation))
    assert holds(finding) == expected
    (table,) = finding.tables
    assert table.rows[1][:4] == ["inside", "200", f"{correlation[1]:.4f}", "0.0100 (to 0.0500)"]
    assert table.rows[0][4:] == [
        "0.600 (0.600 to 0.600)",
        f"{sum(before) / 2:.3f} ({before[0]:.3f} to {before[1]:.3f})",
    ]


@pytest.mark.parametrize(("correlation", "expected"), [([0, 0.1, 0.05], True), ([0, 0.1, 0.2], False)])
def test_where_correlations_peak_is_said_of_the_numbers(correlation, expected):
    finding = parity_findings.degrees(two_shot_data([0.5], [0.5], correlation))
    assert holds(finding) == [expected]
    at = "200" if expected else "300"
    assert [row[:3] for row in finding.tables[0].rows] == [[str(n), at, f"{max(correlation):.4f}"] for n in (1, 2)]


def pcfg_students(*accuracies):
    return {"steps": [500, 1000], "seeds": [*range(len(accuracies))], "accuracy": [*accuracies]}


PCFG = {
    "teacher": {"arguments": {"grammar": "cfg3b", "seed": 0}, "steps": [0, 3000], "accuracy": [0.2, 0.91]},
    "bayes_optimal": {"accuracy": 0.984},
    "students": {
        "ce": pcfg_students([0.5, 0.7], [0.6, 0.75]),
        "one-shot": pcfg_students([0.6, 0.8], [0.42, 0.85]),
        "progressive": pcfg_students([0.7, 0.81], [0.75, 0.86]),
    },
}


def test_students_are_compared_seed_by_seed_on_average_over_the_budgets():
    finding = pcfg_findings.overview(PCFG)
    assert holds(finding) == [True, True, False]
    assert finding.verdicts[2].numbers == "mean difference +0.030; 1 of 2 pairs; p = 1"
    (table,) = finding.tables
    assert table.header[2:] == ["500 steps", "1k steps"]
    assert table.rows == [
        ["cross entropy", "0, 1", "0.550 (0.500 to 0.600)", "0.725 (0.700 to 0.750)"],
        ["one-shot", "0, 1", "0.510 (0.420 to 0.600)", "0.825 (0.800 to 0.850)"],
        ["progressive", "0, 1", "0.725 (0.700 to 0.750)", "0.835 (0.810 to 0.860)"],
        ["teacher", "0", "0.910, 3k steps", ""],
        ["best possible (Bayes)", "", "0.984", ""],
    ]
    other = {**PCFG, "label_level": 2, "students": {**PCFG["students"], "ce": pcfg_students([0.1, 0.1], [0.1, 0.1])}}
    both = pcfg_findings.overview({**PCFG, "label_level": "all", "other_tasks": [other]})
    assert holds(both) == [True, True, False, True, True, True]
    assert [table.caption for table in both.tables] == [
        "Final accuracy, next tokens of cfg3b: mean (range)",
        "Final accuracy, ends at depth 2 of cfg3b: mean (range)",
    ]


def curriculum_data(medians, two_shot):
    return {
        **PCFG,
        "phases": {"start": 150, "end": 250},
        "ngrams": {"n": 3, "steps": [100, 200, 300], "percentiles": [[0, median, 9] for median in medians]},
        "two_shot": {
            "steps": 1000,
            "first_steps": 300,
            "checkpoints": [100, 200, 300],
            "seeds": [0, 1],
            "accuracy": two_shot,
        },
    }


@pytest.mark.parametrize(
    ("medians", "two_shot", "expected"),
    [
        ([0, 2, 1], [[0.5, 0.9, 0.6], [0.5, 0.88, 0.9]], [True, True, True, True]),
        ([0, 2, 3], [[0.5, 0.9, 0.95], [0.5, 0.8, 0.96]], [False, False, True, True]),
        ([3, 2, 1], [[0.5, 0.9, 0.6], [0.5, 0.8, 0.6]], [False, True, True, False]),
    ],
)
def test_the_curriculum_is_said_of_the_numbers(medians, two_shot, expected):
    finding = pcfg_findings.curriculum(curriculum_data(medians, two_shot))
    assert holds(finding) == expected
    (table,) = finding.tables
    assert [row[:2] for row in table.rows[:3]] == [
        ["100", "before it"],
        ["200", "inside the transition"],
        ["300", "after it"],
    ]
    assert table.rows[0][2] == "0.500 (0.500 to 0.500)"
    assert [row[0] for row in table.rows[3:]] == ["cross entropy", "one-shot", "progressive"]
    without = pcfg_findings.curriculum({**curriculum_data(medians, two_shot), "phases": None})
    assert holds(without)[:2] == [False, False]


@pytest.mark.parametrize(("last", "expected"), [(0.9, True), (0.2, False)])
def test_probes_over_training_are_said_of_the_numbers(last, expected):
    levels = [
        {"level": level, "majority": 0.1, "bayes_optimal": None, "accuracy": [0.3, 0.5, final]}
        for level, final in ((1, 0.9), (2, last))
    ]
    finding = pcfg_findings.nonterminals({"nonterminals": {"steps": [50, 100, 150], "levels": levels}})
    assert holds(finding) == [expected]
    assert finding.tables[0].rows[1] == ["2", "0.100", "0.300", f"{last:.3f}", "–"]

    written = {"steps": [50, 100, 150, 200], "accepted": [0.3, 0.5, 0.6, last], "given": 5, "tokens": 6}
    data = {"generation": {**written, "continuations": 1000, "phases": {"start": 90, "end": 160}}}
    finding = pcfg_findings.generation(data)
    assert holds(finding) == [expected]
    assert finding.tables[0].rows == [
        ["first checkpoint", "50", "0.300"],
        ["start of the transition", "100", "0.500"],
        ["end of the transition", "150", "0.600"],
        ["last checkpoint", "200", f"{last:.3f}"],
    ]


@pytest.mark.parametrize(
    ("kl", "medians", "expected"),
    [
        ([[0.1, 0.2, 0.3], [0.4, 0.2, 0.3], [0.9, 0.5, 0.2]], [0.1, 0.5, 0.05], [True, False, True, True]),
        ([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.9, 0.5, 0.2]], [0.1, 0.5, 0.06], [True, True, True, False]),
        ([[0.2, 0.1, 0.3], [0.1, 0.2, 0.3], [0.9, 0.5, 0.2]], [0.5, 0.04, 0.01], [False, False, True, True]),
        ([[0.2, 0.2, 0.1], [0.4, 0.2, 0.1], [0.9, 0.5, 0.2]], [0.4, 0.5, 0.6], [False, True, True, False]),
    ],
)
def test_the_order_of_windows_is_said_of_the_numbers(kl, medians, expected):
    steps = {"steps": [50, 100, 1500]}
    found = {**steps, "positions": 7, "tokens": [1, 3, None], "entropy": [0.9, 0.5, 0.1], "accuracy": [0.5, 0.6, 0.9]}
    ngrams = {**steps, "pairs": 8, "sizes": [2, 3], "medians": [[0.1, 0.3, 0.02], medians]}
    finding = pcfg_findings.windows({"windows": {**found, "kl": kl}, "ngrams": ngrams})
    assert holds(finding) == expected
    of_windows, of_ngrams = finding.tables
    assert of_windows.rows[2] == ["the whole input", "0.100", "0.900", "1.5k", "0.200", "0.200"]
    assert of_ngrams.rows[0] == ["2", "0.300", "100", "1.5k", "0.020"]


class Page(HTMLParser):
    """What a page contains and what it requests."""

    def __init__(self, text):
        super().__init__()
        self.images, self.asked_for, self.words, self.opened, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in ("meta", "img"):
            self.opened.append(tag)
        if tag == "img":
            self.images.append(given)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.asked_for += [given[name] for name in ("src", "href", "srcset", "action", "data") if name in given]

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if "style" not in self.opened:
            self.words.append(data)
        if {"td", "th"} & set(self.opened):
            self.rows[-1][-1] += data


COMMANDS = [
    ("parity_mlp", "python -m parity_mlp.train laptop", 61),
    ("parity_mlp", "python -m parity_mlp.train laptop", 2),
    ("PCFG_mlm", "python -m PCFG_mlm.probe nonterminals --training 2048 --heldout 512 --run runs/PCFG_mlm/laptop", 5),
    ("PCFG_mlm", "python -m PCFG_mlm.train paper", 1000),
]
"""Setting, command and seconds; the last one is of another preset."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figures of the committed data, except those of one setting, which are missing."""
    settings = [name for name in report.TITLES if name != "PCFG_autoregressive"]
    found = make_figures.draw_settings(settings, "laptop", None, tmp_path_factory.mktemp("figures"))
    reason = UserError("there is no <run> & no probe; create it with python -m x")
    return [*found, make_figures.Drawn("PCFG_autoregressive", {}, {}, {"figure1": reason})]


@pytest.fixture(scope="module")
def page(drawn):
    log = [
        {"setting": setting, "preset": line.split()[-1] if "paper" in line else "laptop", "command": line}
        | {"seconds": seconds, "exit": 0, "processor": "2 x <Fast> CPU"}
        for setting, line, seconds in COMMANDS
    ]
    return report.page(drawn, "laptop", log)


def test_a_page_holds_all_that_it_shows(page, drawn):
    found = Page(page)
    assert found.opened == []
    paths = [path for one in drawn for path in one.pictures.values()]
    assert len(found.images) == len(paths) == 15
    for image, path in zip(found.images, paths, strict=True):
        assert image["alt"].endswith(".")
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == path.read_bytes()
    asked_for = [value for value in found.asked_for if not value.startswith("data:")]
    assert asked_for
    assert all(value.startswith("#") for value in asked_for)
    anchors = [value[1:] for value in asked_for]
    assert all(f'id="{anchor}"' in page for anchor in anchors)
    for outside in ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe"):
        assert outside not in page


def test_the_numbers_on_a_page_are_those_of_the_data(page, drawn):
    rows = Page(page).rows
    data = {one.setting: one.data for one in drawn}
    parity = data["parity_mlp"]["students"]["progressive"]
    passed = [
        next(step for step, value in zip(parity["steps"], accuracy, strict=True) if value > 0.95)
        for accuracy in parity["accuracy"]
    ]
    shown = ", ".join(f"{step // 1000}k" for step in passed)
    assert any(row[0] == "progressive" and row[2] == shown for row in rows)
    pcfg = data["PCFG_mlm"]["students"]["progressive"]
    by_budget = [sorted(row[i] for row in pcfg["accuracy"]) for i in range(3)]
    cells = [f"{sum(some) / 3:.3f} ({some[0]:.3f} to {some[-1]:.3f})" for some in by_budget]
    assert ["progressive", "0, 1, 2", *cells] in rows
    text = " ".join(Page(page).words)
    for one in drawn:
        for name in one.pictures:
            finding = report.FINDINGS[one.setting][name](one.data)
            assert finding.claim in text
            for verdict in finding.verdicts:
                assert f"<b>{'yes' if verdict.holds else 'no'}</b> <span>{verdict.statement}: " in page.replace(
                    "&#39;", "'"
                )


def test_a_page_says_what_was_run_for_how_long_and_what_is_missing(page):
    found = Page(page)
    text = " ".join(found.words)
    assert ["python -m parity_mlp.train laptop", "0:01:03 in 2 starts"] in found.rows
    assert ["python -m parity_mlp.distill laptop", "not recorded"] in found.rows
    assert [COMMANDS[2][1], "0:00:05"] in found.rows
    assert sum("PCFG_mlm.probe nonterminals" in row[0] for row in found.rows) == 1
    assert "paper" not in text
    assert "2 x <Fast> CPU" in text
    assert "figure1_PCFG_autoregressive_laptop: there is no <run> & no probe; create it with python -m x" in text
    assert "<run>" not in page


TIME = {"setting": "parity_mlp", "preset": "smoke", "command": "train it's", "seconds": 3, "processor": "2 x"}


def test_times_without_the_line_that_was_cut_off(tmp_path):
    path = tmp_path / "times.jsonl"
    assert read_times(path) == []
    text = f"{json.dumps(TIME)}\n{json.dumps(TIME)}\n"
    for end in range(len(text) + 1):
        path.write_text(text[:end])
        assert read_times(path) == [TIME] * text[:end].count("\n")


@pytest.mark.parametrize("seconds", [-1, 10**9 + 1, 10**30])
def test_a_time_that_cannot_be_is_damaged(tmp_path, seconds):
    path = tmp_path / "times.jsonl"
    path.write_text(json.dumps({**TIME, "seconds": seconds}) + "\n")
    with pytest.raises(UserError, match=r"times\.jsonl, line 1, is damaged"):
        read_times(path)


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "no regular file"), (os.mkdir, "a directory")])
@pytest.mark.parametrize("name", ["figures/times.jsonl", "report.html"])
def test_times_and_a_report_that_are_no_files_are_refused_before_anything_is_drawn(
    tmp_path, monkeypatch, name, make, what
):
    (tmp_path / "figures").mkdir()
    make(tmp_path / name)
    monkeypatch.delattr(report, "draw_settings")
    with pytest.raises(UserError, match=f"{name} is {what}: replace or remove it"):
        report.main(report.Arguments(tmp_path, "smoke"))


def test_the_report_of_a_folder_of_runs(tmp_path, one_torch_thread):
    """With a teacher alone, one figure is drawn, and the others are named with their commands."""
    nothing = "^there is nothing of the preset smoke to draw: run scripts/reproduce.sh all smoke first$"
    with pytest.raises(UserError, match=nothing):
        report.main(report.Arguments(tmp_path, "smoke"))
    assert not (tmp_path / "report.html").exists()

    runs = tmp_path / "runs"
    for main, *words in (
        (train.main, "smoke", "--out", runs / "a"),
        (probe.main, "--run", runs / "a", "--samples", 100),
    ):
        assert exit_code(main, *words) == 0
    line = f"python -m parity_mlp.train smoke --out {runs / 'a'}"
    entry = {"setting": "parity_mlp", "preset": "smoke", "command": line, "seconds": 7, "exit": 0}
    write_file(runs / "figures" / "times.jsonl", json.dumps({**entry, "processor": "1 x CPU"}).encode() + b"\n")
    done = python(ROOT / "figures" / "report.py", "--runs", runs, "--preset", "smoke")
    assert done.returncode == 0, done.stderr
    page = Page((runs / "report.html").read_text())
    assert len(page.images) == 1
    assert "The smoke preset only shows that everything runs." in page.words
    assert [line, "0:00:07"] in page.rows
    config = json.loads((runs / "a" / "config.json").read_text())
    text = " ".join(page.words)
    assert f"torch {config['versions']['torch']}" in text
    assert (config["commit"] or "")[:12] in text
    assert "python -m parity_mlp.distill smoke" in text


def test_reproduction_of_all_settings_knows_its_presets():
    script = ROOT / "scripts" / "reproduce.sh"
    done = subprocess.run([script, "all", "huge"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no 'all huge'; presets are smoke, laptop and paper\n"


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [340, 1300])
def test_a_browser_without_a_network_shows_the_page(page, tmp_path, width):
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    # in a frame, as a window has a least width; what is found once everything is there becomes the title
    measure = (
        "const page = frame.contentDocument, root = page.documentElement; document.title = "
        "[root.scrollWidth, root.clientWidth, ...[...page.images].map(image => image.naturalWidth)]"
    )
    frame = f'<iframe id="frame" width="{width}" height="900" srcdoc="{escape(page)}"></iframe>'
    path.write_text(f"<!doctype html><title></title><body onload='{measure}'>{frame}")
    flags = [
        *("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars".split()),
        *("--disable-background-networking --disable-component-update --disable-sync".split()),
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,950",
    ]
    shot = subprocess.run([BROWSER, *flags, f"--screenshot={picture}", path.as_uri()], capture_output=True, check=False)
    assert picture.exists(), shot.stderr
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (1400, 950)
    dumped = subprocess.run([BROWSER, *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, check=True)
    content, window, *images = map(int, dumped.stdout.partition("<title>")[2].partition("</title>")[0].split(","))
    assert content <= window <= width
    assert len(images) == 15
    assert min(images) > 500
