"""A run is a directory. These modules name it, write it, resume it, find it and compare it.

    config.json         setting, argv, every argument as resolved, package versions, git commit
    metrics.jsonl       one record per line, each with the `step` at which it was made
    checkpoint-<step>/  the model: config.json and model.safetensors
    resume/             what a killed run resumes from, until the run is complete
    probes/  wandb/     written by a probe or by Weights & Biases, if requested
    done.json           written last: the run is complete

A script that keeps to this order may be killed at any moment; it resumes bit-identical to an uninterrupted run:

    with open_run(directory, arguments, setting=..., argv=...) as run:
        resume = load_resume(run.directory)
        run.rewind(resume)
        ...at each evaluation:  run.log({"step": step, ...})
                                save_checkpoint(run.directory, step, ...)
                                save_resume(run.directory, step, ...)
        run.finish({...})

    python -m common.runs table runs/               one line per run
    python -m common.runs compare RUN OTHER_RUN     how two runs differ
    python -m common.runs sync runs/                upload existing runs to Weights & Biases
"""
