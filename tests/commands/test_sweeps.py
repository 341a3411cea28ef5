"""Trials of a sweep: options as agents write them, run folders that do not meet, the shipped sweep and dashboard."""

import json
import os

import yaml
from dtrap.commands.agent_words import agent_words
from dtrap.commands.parser import parse_methods
from dtrap.configs import config_text, shipped_configs
from dtrap.protocol.configuration import build_data
from dtrap.protocol.folder_names import base_name, default_run_folder
from dtrap.protocol.identity import identity
from dtrap.protocol.loggers.numbers import goal_of


def folder_of(*words):
    methods = parse_methods(["--config=demo.yaml", *words])
    return methods[0], default_run_folder(methods, build_data(methods[0].parsed))


def test_words_of_an_agent():
    words = ["--config=a.yaml", "--x.y=None", "--model={'tuner': {'rank': 4}, 'learning_rate': 0.1}", "--data.seed=2"]
    changed = ["--x.y=null", "--model.tuner.rank=4", "--model.learning_rate=0.1"]
    assert agent_words(words) == [words[0], *changed, words[3]]
    kept = ["--model.tuner={'class_path': 'CoOp'}", "--data.template=a {}", "--protocol.compare=['a', 'b']", "-c", "x"]
    assert agent_words(kept)[1:] == kept[1:]


def test_options_of_an_agent_are_those_of_a_user():
    written = ["--model={'tuner': {'rank': 4}}", "--protocol.save_adapters=True", "--trainer.callbacks=None"]
    compared = "--protocol.compare=['methods/baseline.yaml', 'methods/ra.yaml']"
    found = parse_methods(["--config=demo.yaml", *written, compared])
    assert [method.name for method in found] == ["svl-ra", "baseline", "ra"]
    for method in found:
        assert method.values["model"]["tuner"]["init_args"]["rank"] == 4
        assert method.values["protocol"]["save_adapters"] is True
        assert method.values["trainer"]["callbacks"] is None


def test_a_default_folder_says_what_differs_from_the_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = folder_of()[1].name
    assert plain == "shapes-x-ray_5way_1shot_tiny_clip_lora_svl-ra_seed1"
    assert folder_of("--data.num_workers=2", "--protocol.episodes=3", "--trainer.accelerator=cpu")[1].name == plain
    named = folder_of("--model.tuner.rank=4", "--model.learning_rate=0.001")[1].name
    assert named == f"{plain}_tuner.rank-4_learning-rate-0.001"


TRIALS = [
    ["--model.tuner.rank=4"],
    ["--model.tuner.rank=40"],
    ["--model.learning_rate=0.1"],
    ["--model.learning_rate=1.0e-5"],
    ["--data.query=3"],
    ["--data.template=a [x] of {}."],
    ["--data.template=a (x) of {}."],
    ["--config=tuners/lora_both.yaml"],
    ["--config=tuners/coop.yaml"],
    ["--config=batches/coop.yaml"],
    ["--config=methods/paper.yaml"],
    ["--config=methods/ra.yaml"],
    [
        *(f"--model.objective.{name}=0.25" for name in ("anti_visual_weight", "relation_weight")),
        "--trainer.max_epochs=7",
    ],
    ["--stage_switch.stop=1/2", "--model.tuner.dropout=0.5", "--model.tuner.alpha=3", "--data.query=2"],
    ["--stage_switch.stop=1/2", "--model.tuner.dropout=0.5", "--model.tuner.alpha=3", "--data.query=4"],
]


def test_two_trials_never_meet_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [folder_of(*words) for words in TRIALS]
    names = [folder.name for _, folder in found]
    assert len(set(names)) == len(TRIALS)
    assert all(len(os.fsencode(name)) <= 240 for name in names)
    assert all(character.isalnum() or character in "._-" for name in names for character in name)
    again = [folder_of(*words)[1].name for words in TRIALS[-2:]]
    assert again == names[-2:]


def store(folder, method):
    folder.mkdir(parents=True)
    stored = {"main": method.name, "data_files": "x", "methods": {method.name: identity(method.values)}}
    (folder / "identity.json").write_text(json.dumps(stored))


def test_a_folder_under_the_old_name_is_used_if_it_holds_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method, new = folder_of("--model.tuner.rank=4")
    old = new.parent / base_name(method, build_data(method.parsed))
    store(old, method)
    assert folder_of("--model.tuner.rank=4")[1] == old
    other = folder_of()[1]  # the plain config has that name, too
    assert other != old
    assert other.name.startswith(f"{old.name}_")


def test_the_shipped_sweep_names_a_logged_metric_and_known_options():
    sweep = yaml.safe_load(config_text("sweep.yaml"))
    assert goal_of(sweep["metric"]["name"]) == sweep["metric"]["goal"]
    assert "sweep.yaml" not in shipped_configs()
    words = [word for word in sweep["command"][2:] if word != "${args}"]
    values = {name: given.get("value", given.get("min")) for name, given in sweep["parameters"].items()}
    (method, *_) = parse_methods([*words, *(f"--{name}={value}" for name, value in values.items())])
    assert method.values["model"]["objective"]["init_args"]["anti_visual_weight"] == 0.001


def test_a_dashboard_is_built_without_a_key(dtrap, tmp_path, monkeypatch):
    words = ("dashboard", "--entity", "me", "--project", "photos", "--method", "baseline")
    status, out, err = dtrap(*words, "--json", str(tmp_path / "board.json"))
    assert (status, err) == (0, "")
    content = json.loads((tmp_path / "board.json").read_text())
    assert (content["entity"], content["project"]) == ("me", "photos")
    text = json.dumps(content["spec"])
    for name in ("accuracy_mean", "difference_mean/baseline", "per_class", "figures/losses", "lambda"):
        assert name in text
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    status, out, err = dtrap(*words)
    assert (status, out) == (2, "")
    assert "wandb login" in err
    assert err.count("\n") == 1
