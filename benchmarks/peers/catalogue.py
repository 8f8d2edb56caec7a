"""Which peers there are: the module that runs each, its environment, and what its figures are called."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.channel import CONTINUOUS, SERIAL, STATIC
from benchmarks.peers.environment import Requirements, cache_directory
from workers.agent import PATIENT_THREADS

HERE = Path(__file__).parent
OURS, VLLM = "ours", "vllm"


@dataclass(frozen=True, slots=True)
class Peer:
    """figure: what its figures begin with. requirements: None is the environment that runs the benchmark."""

    name: str
    figure: str
    module: str
    mode: str = ""
    requirements: Requirements | None = None
    environment: dict[str, str] = field(default_factory=dict)


def _vllm_environment() -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CACHE_ROOT": str(cache_directory() / "vllm-compiled"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


_VLLM = Requirements(HERE / "vllm.txt", unwanted=("torchvision", "torchaudio", "torchcodec"))
_TRANSFORMERS = "benchmarks.peers.run_transformers"
PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, "engine", "benchmarks.peers.run_millrace", environment=dict(PATIENT_THREADS)),  # as agents start it
        Peer(VLLM, "vllm", "benchmarks.peers.run_vllm", requirements=_VLLM, environment=_vllm_environment()),
        Peer(CONTINUOUS, "transformers_continuous", _TRANSFORMERS, CONTINUOUS),
        Peer(STATIC, "transformers_static", _TRANSFORMERS, STATIC),
        Peer(SERIAL, "transformers_serial", _TRANSFORMERS, SERIAL),
    )
}
DEFAULT_PEERS = (OURS, VLLM, CONTINUOUS, STATIC)
QUICK_PEERS = (OURS, STATIC)
