"""One ggml matrix product, timed, on whichever backend llama.cpp would use. Runs in the child process only.

The product is the one decode spends its time in: a weight matrix times a vector. With weights far larger than the
cache it measures reading; with weights that stay in cache it measures arithmetic. A product with many columns
measures the matrix rate. The library is the one llama-cpp-python carries, so the kernels are the measured ones.
"""

from __future__ import annotations

import ctypes
import functools
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["TYPES", "Ggml", "Product", "commit", "kept_threads", "tensor_values"]

#: ggml_type numbers: fixed by the GGUF format.
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30, "MXFP4": 39, "NVFP4": 40}
_DEVICE_CPU, _DEVICE_GPU, _DEVICE_IGPU = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Product:
    """A weight matrix of ``n_rows`` x ``n_columns`` times ``n_batch`` vectors, ``n_products`` times in one graph.

    More than one product amortises the start of a graph, which matters when the weights are small.
    """

    n_rows: int
    n_columns: int
    n_batch: int = 1
    n_products: int = 1


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class _TensorHead(ctypes.Structure):
    """How a ``ggml_tensor`` begins; there is no function that tells its sizes and strides."""

    _fields_ = (("type", c_int), ("buffer", c_void_p), ("ne", c_int64 * 4), ("nb", c_size_t * 4))


class _ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead": (c_size_t, []),
    "ggml_backend_load_all_from_path": (None, [c_char_p]),
    "ggml_backend_dev_count": (c_size_t, []),
    "ggml_backend_dev_get": (c_void_p, [c_size_t]),
    "ggml_backend_dev_by_type": (c_void_p, [c_int]),
    "ggml_backend_dev_type": (c_int, [c_void_p]),
    "ggml_backend_dev_name": (c_char_p, [c_void_p]),
    "ggml_backend_dev_description": (c_char_p, [c_void_p]),
    "ggml_backend_dev_memory": (None, [c_void_p, POINTER(c_size_t), POINTER(c_size_t)]),
    "ggml_backend_dev_init": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_alloc_ctx_tensors": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_synchronize": (None, [c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_get_name": (c_char_p, [c_void_p]),
    "ggml_commit": (c_char_p, []),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_threadpool_params_default": (_ThreadpoolParams, [c_int]),
    "ggml_threadpool_new": (c_void_p, [POINTER(_ThreadpoolParams)]),
    "ggml_threadpool_free": (None, [c_void_p]),
}


def _library_files(folder: Path, stems: tuple[str, ...] = ("ggml-base", "ggml-cpu", "ggml")) -> list[Path]:
    """ggml's shared libraries, dependencies first, whatever the platform calls them."""
    found = []
    for stem in stems:
        names = (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll", f"lib{stem}.dll")
        found += [folder / name for name in names if (folder / name).is_file()]
    return found


def _llama_file(folder: Path) -> Path:
    return _library_files(folder, ("llama",))[0]


@functools.cache
def _functions() -> dict[str, Any]:
    """ggml's functions, from the libraries that llama-cpp-python carries."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    libraries = [ctypes.CDLL(str(path)) for path in _library_files(folder)]
    found: dict[str, Any] = {}
    for name, (result, arguments) in _PROTOTYPES.items():
        function = next(getattr(library, name) for library in libraries if hasattr(library, name))
        function.restype, function.argtypes = result, arguments
        found[name] = function
    return found


def commit() -> str:
    """The commit of llama.cpp that the libraries were built from, as they say."""
    return str(_functions()["ggml_commit"]().decode(errors="replace")).removesuffix("-dirty")


@contextmanager
def kept_threads(context: Any, n_threads: int) -> Iterator[None]:
    """Processor threads that a context keeps from graph to graph, as llama.cpp's own tools do. The binding has no call for it."""
    import llama_cpp

    f, library = _functions(), ctypes.CDLL(str(_llama_file(Path(llama_cpp.__file__).parent / "lib")))
    library.llama_attach_threadpool.argtypes, library.llama_attach_threadpool.restype = [c_void_p, c_void_p, c_void_p], None
    library.llama_detach_threadpool.argtypes, library.llama_detach_threadpool.restype = [c_void_p], None
    pool = f["ggml_threadpool_new"](ctypes.byref(f["ggml_threadpool_params_default"](n_threads)))
    if not pool:
        raise RuntimeError(f"ggml could not start {n_threads} threads")
    library.llama_attach_threadpool(context, pool, None)
    try:
        yield
    finally:
        library.llama_detach_threadpool(context)
        f["ggml_threadpool_free"](pool)


def tensor_values(tensor: Any, *, only: str, read: bool) -> tuple[str, np.ndarray[Any, Any] | None]:
    """Name of a graph's tensor if it is one of ``only``'s (``"only-3"`` for layer 3), else ``""``; and its 32-bit integers, if wanted."""
    f = _functions()
    name = f["ggml_get_name"](tensor).decode(errors="replace")
    if not re.fullmatch(rf"{only}-\d+", name):
        return "", None
    if not read:
        return name, None
    head = _TensorHead.from_address(tensor)
    raw = np.empty(f["ggml_nbytes"](tensor), np.uint8)
    f["ggml_backend_tensor_get"](tensor, raw.ctypes.data, 0, raw.nbytes)
    shape, strides = (head.ne[1], head.ne[0]), (head.nb[1], head.nb[0])
    return name, np.lib.stride_tricks.as_strided(raw.view(np.int32), shape, strides)


class Ggml:
    """ggml's C interface, and one backend of it: the first GPU if ``use_gpu``, else the CPU."""

    def __init__(self, *, use_gpu: bool, n_threads: int) -> None:
        self._f = _functions()
        self._device = self._find(use_gpu)
        self._backend = self._f["ggml_backend_dev_init"](self._device, None)
        if not self._backend:
            raise RuntimeError("ggml could not start its backend")
        self.is_gpu = self._f["ggml_backend_dev_type"](self._device) in (_DEVICE_GPU, _DEVICE_IGPU)
        self.n_threads = n_threads
        if address := self._special(b"ggml_backend_set_n_threads"):
            ctypes.CFUNCTYPE(None, c_void_p, c_int)(address)(self._backend, n_threads)

    def _special(self, name: bytes) -> Any:
        """Address of a function that only some backends have."""
        return self._f["ggml_backend_reg_get_proc_address"](self._f["ggml_backend_dev_backend_reg"](self._device), name)

    def _special_buffers(self) -> list[Any]:
        """Buffer types in which a backend keeps weights in a layout of its own, in the order llama.cpp tries them."""
        address = self._special(b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        listed = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self._device)
        found: list[Any] = []
        while listed and listed[len(found)]:
            found.append(listed[len(found)])
        return found

    def _find(self, use_gpu: bool) -> Any:
        by_type = self._f["ggml_backend_dev_by_type"]
        if use_gpu and (device := by_type(_DEVICE_GPU) or by_type(_DEVICE_IGPU)):
            return device
        return by_type(_DEVICE_CPU)

    def describe(self) -> dict[str, Any]:
        """Name, description and memory of the backend's device."""
        free, total = c_size_t(), c_size_t()
        self._f["ggml_backend_dev_memory"](self._device, ctypes.byref(free), ctypes.byref(total))
        return {
            "name": self._f["ggml_backend_dev_name"](self._device).decode(),
            "description": self._f["ggml_backend_dev_description"](self._device).decode(errors="replace"),
            "is_gpu": self.is_gpu,
            "memory_bytes": total.value,
        }

    def close(self) -> None:
        self._f["ggml_backend_free"](self._backend)

    def time_product(self, tensor_type: str, product: Product, *, seconds: float) -> tuple[int, list[float]]:
        """Time a product with weights of ``tensor_type``, again and again for ``seconds``.

        Returns the bytes of weights gone through per sample, and the samples in seconds; the first, which touches cold
        pages, is dropped.
        """
        with self._graph(tensor_type, product) as (graph, n_bytes):
            samples: list[float] = []
            end = None
            while end is None or len(samples) < 9 or (time.perf_counter() < end and len(samples) < 400):
                start = time.perf_counter()
                status = self._f["ggml_backend_graph_compute"](self._backend, graph)
                self._f["ggml_backend_synchronize"](self._backend)
                elapsed = time.perf_counter() - start
                if status != 0:
                    raise RuntimeError(f"ggml refused a {tensor_type} product (status {status})")
                if end is None:
                    end = time.perf_counter() + seconds
                else:
                    samples.append(elapsed)
            return product.n_products * n_bytes, samples

    @contextmanager
    def _graph(self, tensor_type: str, product: Product) -> Iterator[tuple[Any, int]]:
        """A graph of products whose weights lie where llama.cpp would keep them, repacked for the processor or not."""
        with ExitStack() as stack:
            for buffer_type in [*self._special_buffers(), None]:
                made = self._products(stack, tensor_type, product, buffer_type)
                if made:
                    yield made
                    return

    def _products(self, stack: ExitStack, tensor_type: str, product: Product, buffer_type: Any) -> tuple[Any, int] | None:
        """The graph with weights in ``buffer_type`` (``None``: the backend's own); ``None`` when it cannot multiply there."""
        f = self._f
        kept, made = (self._context(stack, n) for n in (2, product.n_products + 8))
        weights = f["ggml_new_tensor_2d"](kept, TYPES[tensor_type], product.n_columns, product.n_rows)
        if buffer_type is None:
            buffer = f["ggml_backend_alloc_ctx_tensors"](kept, self._backend)
        else:
            buffer = f["ggml_backend_alloc_ctx_tensors_from_buft"](kept, buffer_type)
        if not buffer:
            raise MemoryError(f"no memory for a {tensor_type} matrix of {product.n_rows} x {product.n_columns}")
        stack.callback(f["ggml_backend_buffer_free"], buffer)
        vector = f["ggml_new_tensor_2d"](made, TYPES["F32"], product.n_columns, product.n_batch)
        products = [f["ggml_mul_mat"](made, weights, vector) for _ in range(product.n_products)]
        if buffer_type is not None and not f["ggml_backend_dev_supports_op"](self._device, products[0]):
            return None
        graph = f["ggml_new_graph"](made)
        for node in products:
            f["ggml_build_forward_expand"](graph, node)
        scratch = f["ggml_backend_alloc_ctx_tensors"](made, self._backend)
        if not scratch:
            raise MemoryError(f"no memory for {product.n_batch} vectors of {product.n_columns}")
        stack.callback(f["ggml_backend_buffer_free"], scratch)
        self._fill(weights)
        self._fill(vector)
        return graph, f["ggml_nbytes"](weights)

    def _context(self, stack: ExitStack, n_tensors: int) -> Any:
        size = n_tensors * self._f["ggml_tensor_overhead"]() + self._f["ggml_graph_overhead"]()
        context = self._f["ggml_init"](_InitParams(size, None, True))
        stack.callback(self._f["ggml_free"], context)
        return context

    def _fill(self, tensor: Any) -> None:
        """Write a small-valued pattern to every page: an untouched page is the one zero page, and reads from cache.

        The byte 0x11 makes tiny, finite numbers in every type used here. Written at once, because a layout of its own can
        only be made from a whole matrix.
        """
        pattern = np.full(self._f["ggml_nbytes"](tensor), 0x11, np.uint8)
        self._f["ggml_backend_tensor_set"](tensor, pattern.ctypes.data, 0, pattern.nbytes)
