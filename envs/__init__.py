"""How an agent walks through the layers of a network and is rewarded (Gymnasium).

Importing this package registers them; an environment itself is imported when it is made.
"""

import gymnasium

gymnasium.register(id="trimtab/ChannelPruning-v0", entry_point="envs.channel_pruning:ChannelPruningEnv")
gymnasium.register(id="trimtab/MixedPrecision-v0", entry_point="envs.mixed_precision:MixedPrecisionEnv")
gymnasium.register(id="trimtab/LowRank-v0", entry_point="envs.joint:LowRankEnv")
gymnasium.register(id="trimtab/Joint-v0", entry_point="envs.joint:JointEnv")
