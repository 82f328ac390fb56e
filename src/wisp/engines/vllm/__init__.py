"""vLLM as the engine that verifies: its model, kernels, KV cache and tensor parallelism under WISP's scheduler and sampler.

    target.py     VllmTarget: histories, checks and ends of generations; knows nothing of vLLM
    process.py    the process vLLM runs in, and what happens when it dies
    child.py      a process beside ours, and the connection to it
    core.py       one step of WISP's scheduler as one step of vLLM: KV blocks, rollback, prefix cache
    sampler.py    WISP's acceptance rules in the place of vLLM's sampler, on every worker
    selfcheck.py  verified logits against plain decoding, at load time
    settings.py   what vLLM is told
    versions.py   which versions of vLLM this was tested with

Only core.py, sampler.py and settings.py import vLLM, and only in vLLM's process. vLLM's own scheduler, sampler and
drafters are not used; what is used of it is internal to vLLM, which is why the range of versions is narrow.
"""
