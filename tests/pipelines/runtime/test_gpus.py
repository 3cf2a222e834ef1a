"""What a job does with the GPUs of a machine, by stand-ins for them."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.generate_actor import memory_plan
from pipelines.runtime import gpus
from rgtg import config_file
from rgtg.errors import UserError
from rgtg.models import memory


@pytest.fixture
def machine(monkeypatch):
    """A machine whose processes see so many GPUs of so many GiB."""

    def see(number, size=80.0, name="NVIDIA H100 80GB HBM3", visible=None):
        properties = SimpleNamespace(name=name, total_memory=int(size * 2**30))
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, properties.total_memory))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return see


def config(*settings):
    return config_file.load(None, ["models.device=cuda", *settings])


def test_what_the_doctor_says_of_them(machine):
    machine(2)
    assert gpus.described() == "NVIDIA H100 80GB HBM3 (80.0 GiB)\nNVIDIA H100 80GB HBM3 (80.0 GiB)"
    machine(1, visible="3")
    assert gpus.described() == "NVIDIA H100 80GB HBM3 (80.0 GiB)\nand no others, because CUDA_VISIBLE_DEVICES is '3'"
    machine(0)
    assert gpus.described() == "none"
    machine(0, visible="")
    assert gpus.described() == "none (CUDA_VISIBLE_DEVICES is '')"


def test_a_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus.described() == f"none (torch {torch.__version__} is built without CUDA)"


def test_of_mig_parts_a_process_sees_one_and_a_job_all(machine):
    machine(1, 10.75, "NVIDIA H100 80GB HBM3 MIG 1g.10gb", visible="MIG-8d0c,MIG-51aa, MIG-77fe")
    assert gpus.count() == 3
    assert gpus.described() == (
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb (10.8 GiB)\nand 2 more MIG instances, one for each actor"
    )
    assert gpus.check(config("generate.max_actors=3")) == "3 of 3 for at most 3 actor(s)"
    machine(0, visible="MIG-8d0c")  # as on a machine whose driver does not answer
    assert gpus.count() == 0


@pytest.mark.parametrize(
    ("found", "settings", "said"),
    [
        (1, [], "1 of 1 for at most 1 actor(s)"),
        (2, [], "1 of 2 for at most 1 actor(s); generate.max_actors=2 would use all of them"),
        (1, ["generate.max_actors=2"], "1 of 1 for at most 1 actor(s)"),
        (1, ["generate.max_actors=2", "generate.gpus_per_actor=0.5"], "1 of 1 for at most 2 actor(s)"),
        (2, ["generate.max_actors=8", "generate.gpus_per_actor=0.6"], "2 of 2 for at most 2 actor(s)"),
        (2, ["generate.gpus_per_actor=0.5"], "1 of 2 for at most 1 actor(s); generate.max_actors=4 would use all"),
    ],
)
def test_how_actors_share_them(machine, found, settings, said):
    machine(found)
    assert gpus.check(config(*settings)).startswith(said)


@pytest.mark.parametrize(
    ("settings", "need"),
    [
        (["generate.min_actors=2", "generate.max_actors=2"], 2),
        (["generate.min_actors=3", "generate.max_actors=3", "generate.gpus_per_actor=0.6"], 3),
        (["generate.min_actors=3", "generate.max_actors=3", "generate.gpus_per_actor=0.5"], 2),
        (["train_reward.num_workers=4", "train_reward.batch_size=32"], 4),
    ],
)
def test_too_few_are_refused(machine, settings, need):
    machine(1)
    with pytest.raises(UserError, match=rf"this machine has 1 GPU\(s\), and .* need {need}; lower"):
        gpus.check(config(*settings))


def test_half_a_gpu_has_half_its_memory(machine, language_dir, reward_dir):
    machine(1, size=0.01)
    found = [
        memory_plan(asked.models, reward_dir, asked.generate, torch.device("cuda"))
        for asked in (
            config(f"models.language={language_dir}", "generate.max_prompt_tokens=64", *half)
            for half in ([], ["generate.gpus_per_actor=0.5"])
        )
    ]
    assert found[1].memory == found[0].memory // 2 == memory.memory_of(torch.device("cuda")) // 2
    assert 0 < found[1].fitting(10_000) < found[0].fitting(10_000)
