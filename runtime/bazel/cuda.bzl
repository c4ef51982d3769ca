"""CUDA libraries: nvcc for every source, one static library a target.

Every file that includes a CUDA header is compiled here (extension .cu), so the
toolkit's thousands of headers are no inputs of C++ actions. A machine without
nvcc gets an empty library.
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@cuda//:defs.bzl", "CUDA_ARCHS", "CUDA_FOUND", "CUDA_PATH")

_HOST_FLAGS = [
    "-Wall",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
    "-fPIC",
]

def _code_flags():
    flags = []
    for arch in CUDA_ARCHS:
        flags.append("-gencode=arch=compute_%s,code=sm_%s" % (arch, arch))
    if "90a" in CUDA_ARCHS:
        flags.append("-DCUBIT_CUDA_SM90A")
    return flags

def _compile(ctx, src, context):
    output = ctx.actions.declare_file(
        "_objs/%s/%s.o" % (ctx.label.name, src.basename[:-len(".cu")]),
    )
    args = ctx.actions.args()
    args.add_all([
        "-std=c++17",
        "-O3",
        "-lineinfo",
        "--expt-relaxed-constexpr",
        "--expt-extended-lambda",
        "-Werror=cross-execution-space-call,reorder",
        "-ccbin=gcc",
    ])
    args.add_all(_code_flags())
    args.add_all(_HOST_FLAGS, before_each = "-Xcompiler")
    args.add_all(ctx.attr.copts)
    args.add_all(context.defines, before_each = "-D")
    args.add("-I.")
    args.add_all(context.quote_includes, before_each = "-I")
    args.add_all(context.includes, before_each = "-I")
    args.add_all(context.system_includes, before_each = "-isystem")
    args.add("-c", src)
    args.add("-o", output)
    ctx.actions.run(
        # nvcc names its temporary files by its process, whose number is the
        # same in every sandbox, while /tmp is shared.
        executable = "/usr/bin/env",
        arguments = [
            "TMPDIR=" + output.dirname,
            CUDA_PATH + "/bin/nvcc",
            args,
        ],
        inputs = depset(
            ctx.files.srcs + ctx.files.hdrs,
            transitive = [context.headers],
        ),
        outputs = [output],
        # nvcc starts its own compilers by name.
        env = {"PATH": CUDA_PATH + "/bin:/usr/local/bin:/usr/bin:/bin"},
        mnemonic = "Nvcc",
        progress_message = "Compiling %s" % src.short_path,
    )
    return output

def _archive(ctx, objects):
    archive = ctx.actions.declare_file("lib%s.a" % ctx.label.name)
    ctx.actions.run(
        executable = "/usr/bin/ar",
        arguments = ["rcsD", archive.path] + [o.path for o in objects],
        inputs = objects,
        outputs = [archive],
        mnemonic = "CudaArchive",
    )
    return archive

def _linking_context(ctx, libraries):
    return cc_common.create_linking_context(linker_inputs = depset([
        cc_common.create_linker_input(
            owner = ctx.label,
            libraries = depset(libraries),
            user_link_flags = depset([
                "-L%s/lib64" % CUDA_PATH,
                "-Wl,-rpath,%s/lib64" % CUDA_PATH,
            ] + ["-l" + name for name in ctx.attr.cuda_libraries]),
        ),
    ]))

def _cuda_library_impl(ctx):
    deps = cc_common.merge_cc_infos(
        cc_infos = [dep[CcInfo] for dep in ctx.attr.deps],
    )
    own = cc_common.create_compilation_context(headers = depset(ctx.files.hdrs))
    objects = [
        _compile(ctx, src, deps.compilation_context)
        for src in ctx.files.srcs
        if src.extension == "cu"
    ]
    libraries = []
    if objects:
        cc_toolchain = find_cpp_toolchain(ctx)
        libraries.append(cc_common.create_library_to_link(
            actions = ctx.actions,
            cc_toolchain = cc_toolchain,
            feature_configuration = cc_common.configure_features(
                ctx = ctx,
                cc_toolchain = cc_toolchain,
            ),
            static_library = _archive(ctx, objects),
            alwayslink = True,
        ))
    info = CcInfo(
        compilation_context = own,
        linking_context = _linking_context(ctx, libraries),
    )
    return [
        DefaultInfo(files = depset(objects)),
        cc_common.merge_cc_infos(cc_infos = [info, deps]),
    ]

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu", ".cuh"]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "copts": attr.string_list(),
        "cuda_libraries": attr.string_list(default = ["cudart"]),
        "_cc_toolchain": attr.label(
            default = "@bazel_tools//tools/cpp:current_cc_toolchain",
        ),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

def cuda_library(name, srcs = [], hdrs = [], deps = [], cuda_libraries = [], **kwargs):
    """Sources (.cu), private headers among them (.cuh), public headers (hdrs).

    `cuda_libraries` are names of the toolkit's libraries besides cudart, such
    as "cublasLt".
    """
    if CUDA_FOUND:
        _cuda_library(
            name = name,
            srcs = srcs,
            hdrs = hdrs,
            deps = deps,
            cuda_libraries = cuda_libraries + ["cudart"],
            **kwargs
        )
    else:
        native.cc_library(name = name)
