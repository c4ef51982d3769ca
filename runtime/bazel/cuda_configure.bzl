"""@cuda: says whether this machine can compile CUDA, and for which GPUs.

The answer is constants that BUILD files load: CUDA_FOUND, CUDA_PATH (folder of
the toolkit), CUDA_ARCHS (what nvcc compiles for), CUDNN_FOUND, NCCL_FOUND. On
a machine without nvcc they are empty and so is every CUDA target; nothing
breaks.

Architectures: those of the GPUs here; without a GPU, Hopper. The environment
variable CUBIT_CUDA_ARCHS overrides, e.g. CUBIT_CUDA_ARCHS="80 90a".
"""

_DEFAULT_ARCHS = ["90a"]

# The oldest architecture with the instructions that the kernels use (bf16
# matrix products, asynchronous copies).
_OLDEST_ARCH = 80

def _archs_of_gpus(ctx):
    smi = ctx.which("nvidia-smi")
    if not smi:
        return []
    result = ctx.execute([smi, "--query-gpu=compute_cap", "--format=csv,noheader"])
    if result.return_code != 0:
        return []
    archs = []
    for line in result.stdout.split("\n"):
        arch = line.strip().replace(".", "")
        if not arch.isdigit() or int(arch) < _OLDEST_ARCH:
            continue

        # wgmma and its kin exist in sm_90a alone.
        arch = "90a" if arch == "90" else arch
        if arch not in archs:
            archs.append(arch)
    return archs

def _archs(ctx):
    asked = ctx.os.environ.get("CUBIT_CUDA_ARCHS", "")
    if asked:
        return [a for a in asked.replace(",", " ").replace(";", " ").split(" ") if a]
    return _archs_of_gpus(ctx) or _DEFAULT_ARCHS

def _toolkit_of(ctx, nvcc):
    # What is on PATH may be a script that starts the toolkit's nvcc.
    home = ctx.os.environ.get("CUDA_HOME", "")
    candidates = [str(nvcc.dirname.dirname), str(nvcc.realpath.dirname.dirname)]
    candidates += ([home] if home else []) + ["/usr/local/cuda"]
    for path in candidates:
        if _has_header(ctx, path, "cuda_runtime.h"):
            return path
    return ""

def _has_header(ctx, path, header):
    return bool(path) and ctx.path(path + "/include/" + header).exists

def _cuda_configure_impl(ctx):
    nvcc = ctx.which("nvcc")
    path = _toolkit_of(ctx, nvcc) if nvcc else ""
    lines = [
        "CUDA_FOUND = %r" % bool(path),
        "CUDA_PATH = %r" % path,
        "CUDA_ARCHS = %r" % (_archs(ctx) if path else []),
        "CUDNN_FOUND = %r" % _has_header(ctx, path, "cudnn.h"),
        "NCCL_FOUND = %r" % _has_header(ctx, path, "nccl.h"),
    ]
    ctx.file("BUILD.bazel", "")
    ctx.file("defs.bzl", "\n".join(lines) + "\n")

cuda_configure = repository_rule(
    implementation = _cuda_configure_impl,
    environ = ["PATH", "CUBIT_CUDA_ARCHS", "CUDA_HOME"],
    local = True,
)
