"""Limits of control groups of both versions, as the kernel shows them to a process."""

import pytest
from conftest import write_files

from flan_qa_pipeline.control_groups import cpu_quotas, free_bytes
from flan_qa_pipeline.models import device

V2, V1 = "0::/docker/abc\n", "12:cpuset:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"


def v1(folder, quota, period="100000"):
    return {
        f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": f"{period}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "quotas"),
    [
        (V2, {"sys/fs/cgroup/docker/abc/cpu.max": "200000 100000\n"}, [2]),
        (V2, {"sys/fs/cgroup/docker/abc/cpu.max": "max 100000\n"}, []),
        (V2, {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, [1.5]),  # seen from inside
        ("0::/\n", {"sys/fs/cgroup/unified/cpu.max": "50000 100000\n"}, [0.5]),
        (
            V2,
            {
                "sys/fs/cgroup/docker/abc/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/docker/cpu.max": "300000 100000\n",
            },
            [8, 3],
        ),
        (V1, v1("cpu,cpuacct/docker/abc", 200000), [2]),
        (V1, v1("cpu,cpuacct/docker/abc", -1), []),
        (V1, v1("cpu", 400000), [4]),
        (V1, v1("cpu", 400000, "0"), []),
        (V1, v1("cpu", "broken"), []),
        (V1 + "0::/\n", v1("cpu,cpuacct/docker/abc", 300000), [3]),
        ("", {}, []),
        ("no line of a control group\n", {}, []),
    ],
)
def test_quotas_are_read_from_both_kinds_of_control_groups(tmp_path, groups, files, quotas):
    write_files(tmp_path, {"proc/self/cgroup": groups} | files)
    assert list(cpu_quotas(tmp_path)) == quotas


V1_MEMORY = "4:memory:/docker/abc\n"


def memory(folder, limit, used, cached=0, active=0):
    return {
        f"sys/fs/cgroup/{folder}/memory.max": f"{limit}\n",
        f"sys/fs/cgroup/{folder}/memory.current": f"{used}\n",
        f"sys/fs/cgroup/{folder}/memory.stat": (
            f"anon 7\nactive_file {active}\ninactive_file {cached}\n"
        ),
    }


def memory_v1(folder, limit, used, cached):
    group = f"sys/fs/cgroup/memory/{folder}"
    return {
        f"{group}/memory.limit_in_bytes": f"{limit}\n",
        f"{group}/memory.usage_in_bytes": f"{used}\n",
        f"{group}/memory.stat": (
            f"inactive_file 7\ntotal_active_file 30\ntotal_inactive_file {cached}\n"
        ),
    }


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        (V2, memory("docker/abc", 1000, 600), [400]),
        (V2, memory("docker/abc", 1000, 600, cached=100, active=20), [520]),
        (V2, memory("docker/abc", 1000, 1200), [0]),
        (V2, memory("docker/abc", "max", 600), []),
        (V2, memory("docker/abc", 1000, 600) | memory("docker", 800, 700), [400, 100]),
        (V2, memory("", 900, 600), [300]),  # seen from inside
        (V2, {"sys/fs/cgroup/memory.max": "900\n"}, []),
        (V1_MEMORY, memory_v1("docker/abc", 1000, 600, 50), [480]),
        (V1_MEMORY, memory_v1("", 2**63 - 4096, 600, 0), [2**63 - 4666]),
        ("", {}, []),
    ],
)
def test_free_memory_is_read_from_both_kinds_of_control_groups(tmp_path, groups, files, free):
    write_files(tmp_path, {"proc/self/cgroup": groups} | files)
    assert list(free_bytes(tmp_path)) == free


@pytest.mark.parametrize("limits", [[], [2**62], [5000, 3000]])
def test_free_memory_stays_within_the_limits_of_a_container(monkeypatch, limits):
    monkeypatch.setattr(device, "get_max_memory", lambda: {"cpu": 9000})
    monkeypatch.setattr(device.control_groups, "free_bytes", lambda: limits)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cpu = device.torch.device("cpu")
    assert device.free_memory(cpu) == min([9000, *limits])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device.free_memory(cpu) == min([9000, *limits]) // 2
