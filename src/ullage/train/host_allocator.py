"""Host memory while training on a CPU: see ``ullage.runtime.host_allocator``."""

from ullage.runtime.host_allocator import _glibc, reusing_host_memory

__all__ = ["_glibc", "reusing_host_memory"]
