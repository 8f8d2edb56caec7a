"""What the device's memory moves per second at best, measured by a large copy in the same run."""

import statistics
import time

import torch

from benchmarks.gpu.scene import Scene

_NUM_COPIES = 12


def bandwidth(scene: Scene) -> float:
    """Bytes per second, read and written together. Measured once, which takes memory: before K/V take all of it."""
    if not scene.bandwidth:
        scene.bandwidth.append(_measure(scene))
        scene.free()
        scene.report.add("copy_bandwidth", scene.bandwidth[0] / 1e9, "GB/s")
    return scene.bandwidth[0]


def _measure(scene: Scene) -> float:
    source = torch.randint(0, 255, (scene.size.copy_bytes,), dtype=torch.uint8, device=scene.device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(_NUM_COPIES):
        synchronize(scene)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(scene)
        seconds.append(time.perf_counter() - started)
    return 2 * scene.size.copy_bytes / statistics.median(seconds)


def synchronize(scene: Scene) -> None:
    if scene.device == "cuda":
        torch.cuda.synchronize()
