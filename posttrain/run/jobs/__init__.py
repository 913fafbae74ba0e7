"""One file that starts everything a recipe needs: trainer on every machine, rollout servers, and the end of both.

`job_layout.py` decides what runs where and how the model is shared out; `job_file.py` writes that as a Slurm batch
file, a SkyPilot task or a plain script. What a machine does is the same text in all three (`machine.sh.j2`).
"""
