"""A finished model to the Hugging Face hub, as `output.hub` says. No torch.

The model stands in the run folder before anything is sent: a push that fails costs nothing but the push.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from posttrain.recipe.sections import HubSection

PICKLED = "training_args.bin"
"""Saved beside the model by transformers: paths and host name of this machine, in a pickle that nobody should load."""


def hub_warnings(hub: HubSection | None) -> Iterator[str]:
    """What would keep the push from succeeding, known before training."""
    if hub is None:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield (
            f"output.hub: HF_HUB_OFFLINE is set, so nothing will be pushed to {hub.repo} at the end; unset it, or push "
            "by hand afterwards"
        )
    if get_token() is None:
        yield (
            f"output.hub: there is no token, and the push to {hub.repo} at the end will fail: hf auth login, or set "
            "HF_TOKEN where the run starts"
        )


def push(model_dir: Path, hub: HubSection) -> str:
    """Sends the folder and says in one line what became of it; never raises."""
    return sent(model_dir, hub)[1]


def sent(model_dir: Path, hub: HubSection) -> tuple[bool, str]:
    """As `push`, and whether it arrived."""
    flags = (" --private" if hub.private else "") + (f" --revision {hub.revision}" if hub.revision else "")
    by_hand = f"hf upload {hub.repo} {model_dir}{flags} --exclude {PICKLED}"
    if not os.path.isdir(model_dir):
        return False, f"hub: there is no {model_dir} to push"
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        # the name as the hub completes it: a bare name belongs to whom the token belongs to
        created = api.create_repo(hub.repo, private=hub.private, exist_ok=True)
        if hub.revision is not None:
            api.create_branch(created.repo_id, branch=hub.revision, exist_ok=True)
        arrived = api.upload_folder(
            repo_id=created.repo_id,
            folder_path=model_dir,
            ignore_patterns=[PICKLED],
            commit_message="Upload a model trained with posttrain",
            revision=hub.revision,
        )
    except Exception as error:
        # whatever the network, the token, the quota or the server does: the run is done and its model saved
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
        return False, f"hub: not pushed to {hub.repo} ({reason}); the model is saved, push it with: {by_hand}"
    return True, f"hub: pushed to {arrived.repo_url}{_local_base(model_dir)}"


def _local_base(model_dir: Path) -> str:
    """What an adapter's reader elsewhere will miss."""
    config = model_dir / "adapter_config.json"
    base = (
        json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if config.is_file()
        else None
    )
    if not base or not os.path.isdir(base):
        return ""
    return (
        f"; its adapter_config.json names the base by a folder of this machine ({base}), which others do not have: "
        "posttrain merge makes a whole model of it"
    )
