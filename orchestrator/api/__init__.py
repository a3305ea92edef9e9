"""layersweep: which transformer layers carry the gains of RL post-training?"""
