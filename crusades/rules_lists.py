"""The lists behind the rules: modules, members, attributes and builtins, each entry with the rule that it breaks. Data only.

The scanner reads them here; the import hook gets them as plain data in the first frame (`rules.hook_table`), so both speak
of the same names. A submission needs tensors, a compiler and small tools of the standard library: modules are therefore
listed by what is *allowed*; the forbidden lists below only give the better known ones a reason of their own.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALLOWED_BY_REASON = {
    "the standard library, as far as it only computes": "__future__ abc array bisect cmath collections contextlib copy dataclasses datetime "
    "decimal enum fractions functools graphlib heapq itertools json keyword math numbers operator random re statistics string "
    "textwrap time types typing typing_extensions warnings",
    "the runtime": "torch functorch triton numpy transformers",
    "kernels that a validator may or may not have installed; `except ImportError` decides, not a rule": "apex cut_cross_entropy einops "
    "flash_attn flash_attn_interface helion liger_kernel quack torchao transformer_engine xformers",
}

ALLOWED_MODULES: frozenset[str] = frozenset(name for names in _ALLOWED_BY_REASON.values() for name in names.split())
"""Top-level modules that a submission may import."""

_BY_RULE: dict[str, str] = {
    # files, processes and the interpreter's own state
    "R101": "os sys posix nt posixpath ntpath subprocess _posixsubprocess pathlib shutil tempfile io _io glob fnmatch fileinput "
    "filecmp linecache platform pwd grp resource fcntl termios tty pty getpass sysconfig site env sqlite3 dbm zipfile tarfile gzip "
    "bz2 lzma configparser argparse optparse cmd curses readline webbrowser crypt spwd syslog psutil sh pexpect",
    # the network
    "R102": "socket _socket ssl _ssl http urllib urllib3 requests httpx httpcore aiohttp websockets websocket ftplib smtplib poplib "
    "imaplib telnetlib nntplib xmlrpc socketserver wsgiref select selectors huggingface_hub datasets wandb paramiko grpc boto3 "
    "bittensor hypercorn quart",
    # looking at, or into, the running interpreter
    "R103": "inspect gc ast dis code codeop compileall py_compile builtins _builtins bltns symtable tokenize token opcode importlib _imp imp "
    "pkgutil runpy zipimport zipapp modulefinder traceback tracemalloc weakref _weakref logging unittest mock doctest pdb bdb trace "
    "profile cProfile faulthandler pydoc __main__ main hook harness wire limits crusades pytest copyreg "
    "_opcode _symtable _ast _tracemalloc _warnings",
    # work outside the measured call
    "R104": "threading _thread multiprocessing _multiprocessing concurrent asyncio _asyncio queue _queue sched signal _signal atexit "
    "contextvars trio anyio gevent eventlet greenlet joblib dask ray timeit",
    # native code and raw memory
    "R105": "ctypes _ctypes cffi _cffi_backend mmap distutils setuptools pip cython Cython pyximport pybind11 numba llvmlite cupy "
    "pycuda cuda nvidia pynvml nvidia_smi tvm jax tensorflow",
    # bytes that become objects or code
    "R106": "pickle _pickle pickletools cPickle marshal shelve cloudpickle dill codecs base64 binascii binhex uu quopri encodings "
    "zlib safetensors gguf h5py yaml",
}

DENIED_MODULES: dict[str, str] = {name: rule for rule, names in _BY_RULE.items() for name in names.split()}
"""Top-level module → rule. A module in neither list is R109."""

DENIED_SUBMODULES: dict[str, str] = {
    "torch.utils.cpp_extension": "R105",
    "torch.utils.dlpack": "R304",
    "torch._C": "R111",
    "torch.hub": "R106",
    "torch.package": "R106",
    "torch.serialization": "R106",
    "torch.multiprocessing": "R104",
    "torch.distributed": "R104",
    "torch.utils.data": "R104",
    "torch._inductor.codecache": "R105",
    "torch._inductor.cpp_builder": "R105",
    "torch.utils.model_zoo": "R102",
    "torch.utils.collect_env": "R101",
    "torch.utils.benchmark": "R101",
    "torch.cuda._sanitizer": "R111",
    "torch.testing._internal": "R101",
    "numpy.ctypeslib": "R105",
    "numpy.f2py": "R105",
    "numpy.distutils": "R105",
    "numpy.testing": "R101",
    "triton.runtime.build": "R105",
    "triton.tools": "R105",
    "triton.backends": "R105",
    "transformers.utils.hub": "R102",
    "transformers.dynamic_module_utils": "R106",
    "torch._dynamo.funcname_cache": "R101",
    "torch._dynamo.distributed": "R104",
    "transformers.utils.chat_template_utils": "R201",
}
"""Dotted module → rule; holds for everything below it. Any path with `cpp_extension` in it is R105 as well."""

_ORDINARY_WORDS = _words(
    "cmd code cuda datasets encodings env hook limits main mock nt nvidia opcode pip profile readline requests resource sched select "
    "sh site token tokenize trace trio tty uu warnings wire"
)
"""Of the forbidden modules' names, those by which torch and its like call things of their own (`torch.trace`, `torch.cuda`)."""

BORROWED_MODULES: frozenset[str] = frozenset(name.strip("_") for name in DENIED_MODULES) - _ORDINARY_WORDS
"""Forbidden modules that lie about as attributes of allowed ones, with or without a leading underscore: R110."""

NAMESAKES: frozenset[str] = _words("torch._logging torch.signal torch.fx.traceback transformers.logging transformers.utils.logging")
"""Modules of allowed packages that have the name of a forbidden one and are harmless."""

ALLOWED_SUBMODULES: frozenset[str] = frozenset({"torch.distributed.algorithms._checkpoint", "triton.tools.tensor_descriptor"})
"""Exceptions from the list above: activation checkpointing lives in the one for historical reasons, Hopper's tensor
descriptors for kernels in the other."""

DENIED_MEMBERS: dict[str, dict[str, str]] = {
    "torch": {
        "_C": "R111", "load_library": "R105", "load_inline": "R105", "cpp_extension": "R105", "codecache": "R105", "cpp_builder": "R105",
        "load": "R106", "save": "R106", "from_file": "R106", "hub": "R106", "package": "R106", "serialization": "R106",
        "load_state_dict_from_url": "R102", "download_url_to_file": "R102",
        "multiprocessing": "R104", "distributed": "R104", "DataLoader": "R104",
        "set_grad_enabled": "R402", "inference_mode": "R402", "_set_grad_enabled": "R402",
        "from_dlpack": "R304", "to_dlpack": "R304", "dlpack": "R304", "_snapshot": "R304", "caching_allocator_delete": "R304",
        "change_current_allocator": "R304", "CUDAPluggableAllocator": "R304",
        "set_default_dtype": "R401", "set_default_tensor_type": "R401", "set_default_device": "R401",
        "use_deterministic_algorithms": "R401", "set_deterministic_debug_mode": "R401", "set_flush_denormal": "R401",
        "set_per_process_memory_fraction": "R401",
        "enable_flash_sdp": "R401", "enable_mem_efficient_sdp": "R401", "enable_math_sdp": "R401", "enable_cudnn_sdp": "R401",
        "preferred_linalg_library": "R401", "preferred_blas_library": "R401", "preferred_rocm_fa_library": "R401",
        "allow_fp16_bf16_reduction_math_sdp": "R401", "set_flags": "R401", "flags": "R401",
        "_exec_with_source": "R201", "_forward_from_src": "R201", "_method_from_src": "R201", "CompilationUnit": "R201", "CodeGen": "R201",
        "_load_from_bytes": "R106", "_dump_snapshot": "R106", "caching_allocator_alloc": "R304",
        "TorchFunctionMode": "R303", "TorchDispatchMode": "R303", "_disable_dynamo": "R111",
        "mp": "R104", "mock": "R201", "sympy": "R201", "_osp": "R101", "torchgen": "R101",
    },
    "numpy": {
        "load": "R106", "save": "R106", "savez": "R106", "savez_compressed": "R106", "savetxt": "R106", "loadtxt": "R106",
        "genfromtxt": "R106", "fromfile": "R106", "memmap": "R106", "open_memmap": "R106", "DataSource": "R106", "fromregex": "R106", "read_array": "R106",
        "ctypeslib": "R105", "f2py": "R105", "distutils": "R105", "testing": "R101",
    },
    "operator": {"attrgetter": "R203", "methodcaller": "R203"},
    "types": {
        "CodeType": "R206", "FunctionType": "R206", "LambdaType": "R206", "new_class": "R206", "prepare_class": "R206",
        "CellType": "R206", "FrameType": "R202", "TracebackType": "R202", "ModuleType": "R206", "GetSetDescriptorType": "R202",
        "MemberDescriptorType": "R202", "DynamicClassAttribute": "R303",
    },
    "string": {"Formatter": "R203"},
    "dataclasses": {"_create_fn": "R201", "_FuncBuilder": "R201"},
    "typing": {"get_type_hints": "R201", "ForwardRef": "R201", "_eval_type": "R201"},
    "typing_extensions": {"get_type_hints": "R201", "ForwardRef": "R201", "evaluate_forward_ref": "R201"},
    "transformers": {"from_pretrained": "R106", "pipeline": "R106", "cached_file": "R106", "hub": "R102", "Trainer": "R106",
                     "hf_hub_utils": "R102", "jinja2": "R201"},
    "triton": {"build": "R105", "tools": "R105", "backends": "R105"},
}  # fmt: skip
"""Top-level module → name anywhere below it → rule."""

DENIED_BUILTINS: dict[str, str] = dict.fromkeys(
    _words("__import__ eval exec compile open input breakpoint globals locals vars dir memoryview __build_class__ exit quit "
           "copyright credits license help __builtins__ __loader__ __spec__"),
    "R201",
)  # fmt: skip
"""Builtin → rule. `getattr`, `setattr` and `delattr` are guarded, not forbidden."""

GUARDED_BUILTINS: frozenset[str] = frozenset({"getattr", "setattr", "delattr"})

INTROSPECTION: frozenset[str] = _words(
    "__globals__ __code__ __closure__ __func__ __self__ __subclasses__ __bases__ __base__ __mro__ mro __defaults__ "
    "__kwdefaults__ __traceback__ tb_frame tb_next tb_lasti f_globals f_builtins f_locals f_code f_back f_trace f_lasti "
    "co_consts co_names co_code co_varnames co_freevars co_cellvars co_filename gi_frame gi_code gi_yieldfrom cr_frame "
    "cr_code cr_await cr_origin ag_frame ag_code __dict__ __builtins__ __import__ __loader__ __spec__ __getattribute__ "
    "__getattr__ __setattr__ __delattr__ __get__ __set__ __delete__ __set_name__ __init_subclass__ __reduce__ __reduce_ex__ "
    "__getstate__ __setstate__ __subclasshook__ __weakref__ __objclass__ __thisclass__ __self_class__ cell_contents "
    "func_globals func_code __torch_function__ __torch_dispatch__ __slots__ __instancecheck__ __subclasscheck__ __prepare__ "
    "__abstractmethods__ __match_args__"
)
"""Attributes that show or change how the interpreter works. Reading one is R202, writing its name in a string R204."""

PASSED_ON: frozenset[str] = frozenset({"__setattr__", "__delattr__", "__getstate__", "__setstate__", "__init_subclass__"})
"""Of these, what a class may hand on to its parent: `super().__setattr__(name, value)`."""

LAZY_METHODS: frozenset[str] = _words(
    "__getattribute__ __getattr__ __get__ __set__ __delete__ __set_name__ __init_subclass__ __instancecheck__ "
    "__subclasscheck__ __prepare__ __torch_function__ __torch_dispatch__ __del__ __reduce__ __reduce_ex__ __class_getitem__ "
    "__mro_entries__"
)
"""Methods that run code when somebody only looks at, or drops, an object: defining one is R303."""

RAW_MEMORY: frozenset[str] = _words(
    "__cuda_array_interface__ __array_interface__ __array_struct__ __dlpack__ __dlpack_device__ _share_cuda_ "
    "_new_shared_cuda _share_fd_cpu_ _new_shared_fd_cpu _share_filename_cpu_ _new_shared_filename_cpu _release_ipc_counter "
    "_new_with_weak_ptr _weak_ref cudart from_blob _unsafe_view_from_address rebuild_cuda_tensor"
)
"""Names that turn addresses into tensors or share memory between processes: R304."""

FILE_METHODS: frozenset[str] = _words(
    "tofile from_pretrained save_pretrained push_to_hub save_to_file export_chrome_trace export_stacks read_text write_text "
    "read_bytes write_bytes"
)
"""Methods of any object that read or write files: R106."""

MODULE_VARIABLES: frozenset[str] = _words(
    "__name__ __builtins__ __spec__ __loader__ __file__ __package__ __import__ __path__"
)
"""Variables of the module that its own code may not bind: R205."""

KERNEL_SETTERS: frozenset[str] = frozenset({"py_impl", "py_functionalize_impl"})
"""Methods of an operator that replace its kernels: R305, on whatever they are called."""

TORCH_NAMESPACES: frozenset[str] = _words("aten prims prim c10d quantized _ higher_order inductor triton")
"""Namespaces of operators that are not a submission's."""

CLOCK_NAMES: frozenset[str] = _words(
    "time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time process_time_ns thread_time "
    "thread_time_ns clock_gettime clock_gettime_ns sleep elapsed_time synchronize record wait query"
)
"""Attributes of `time` and of CUDA events and streams; replacing one is R301."""

CLOCK_NAMES_ANYWHERE: frozenset[str] = _words(
    "perf_counter perf_counter_ns monotonic monotonic_ns elapsed_time synchronize"
)
"""Of these, the ones that nobody uses as a name of their own."""

BACKEND_SETTINGS_ALLOWED: frozenset[str] = frozenset({"allow_tf32", "fp32_precision", "fp32_precision_type"})
"""Settings below `torch.backends` that may be written: the audit measures precision, whatever the setting."""

OPEN_CONFIGS: tuple[str, ...] = ("torch._inductor.config.", "torch._dynamo.config.", "torch._functorch.config.", "torch.compiler.config.")
"""Configuration of the compiler may be written: it changes speed, and what it computes is audited."""

MODEL_CONFIG_ALLOWED: frozenset[str] = _words(
    "use_cache output_hidden_states output_attentions return_dict _attn_implementation _attn_implementation_internal"
)
"""Keys of `model.config` that only choose what is returned, or by which kernel it is computed."""

MODEL_NAMES: frozenset[str] = _words("model base_model _orig_mod module")
"""Names by which the scanner knows a model, beside the first parameter of inner_steps: `wrapped.module.config`."""

OPTIMIZER_NAMES: frozenset[str] = frozenset({"optimizer", "optim"})
"""Names by which the scanner knows the optimizer in helpers; in inner_steps it is the third parameter, whatever its name."""

OPTIMIZER_MEMBERS: frozenset[str] = _words(
    "state load_state_dict add_param_group defaults _step_count __setstate__"
)
"""Parts of the optimizer that hold or replace its state: R502."""

OPTIMIZER_FIELDS: frozenset[str] = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"})
"""Keys of the optimizer's state: R502 wherever they index something."""

MUTATORS: frozenset[str] = _words(
    "append extend insert pop remove clear update setdefault popitem reverse sort __setitem__ __delitem__"
)
"""Methods that change a list or dict in place."""

OPTIMIZER_CLASSES: frozenset[str] = _words(
    "Adadelta Adagrad Adam AdamW SparseAdam Adamax ASGD LBFGS NAdam RAdam RMSprop Rprop SGD Adafactor Muon"
)
"""Constructors below torch.optim: R503 when called."""

KNOWN_MODULES: frozenset[str] = _words(
    "torch torch.nn torch.nn.functional torch.nn.init torch.nn.attention torch.optim torch.cuda torch.autograd "
    "torch.backends torch.backends.cuda torch.backends.cudnn torch.utils torch.utils.checkpoint torch.amp torch.compiler "
    "torch.library torch.ops torch.fx torch.linalg torch.special torch.jit torch.export torch._dynamo torch._inductor "
    "triton triton.language triton.runtime triton.testing transformers numpy numpy.random numpy.linalg"
)
"""Paths that are modules although `from … import` does not say so."""

AUDIT_EVENTS: dict[str, str] = {
    "open": "R101", "os.": "R101", "subprocess.": "R101", "shutil.": "R101", "glob.": "R101", "tempfile.": "R101", "pty.": "R101", "fcntl.": "R101",
    "resource.": "R101", "sqlite3.": "R101", "socket.": "R102", "urllib.": "R102", "http.": "R102", "ftplib.": "R102", "smtplib.": "R102",
    "ctypes.": "R105", "mmap.": "R105", "exec": "R201", "compile": "R201", "code.__new__": "R206", "function.__new__": "R206",
    "sys._getframe": "R202", "sys._current": "R202", "sys.set": "R202", "sys.addaudithook": "R202", "gc.": "R202", "object.__getattr__": "R202", "object.__setattr__": "R302", "object.__delattr__": "R302",
    "pickle.": "R106", "marshal.": "R106", "signal.": "R104", "_thread.": "R104", "builtins.input": "R201", "builtins.breakpoint": "R201",
}  # fmt: skip
"""Audit events of the interpreter (PEP 578) that the hook refuses when a line of train.py raises one *itself*: prefix → rule.

Reached through `torch.os` and the like, which a scanner can be led past. Events that torch raises on a submission's behalf pass."""
