"""The one table: what the original AIME's documents import, and what that is here.

A key is a module as the documents write it without its first word: `src.world_model` and `world_model` are the same
entry, and so are `legacy.VRNN.RGB` and `VRNN.RGB`. A value names an object as `module:attribute`, or a whole module.
"""

from __future__ import annotations

PREFIXES = ("src.", "legacy.")
"""First words that a documented module may have."""


def of(module: str, *names: str) -> dict[str, str]:
    """Names that a module here has under the same name."""
    return {name: f"{module}:{name}" for name in names}


WORLD_MODEL = of("aime.world_model", "DPGMMVariationalRecurrentAutoencoder")
TRAINING = of("aime.training", "DMCVBDataset", "DMCVBTrainer") | {"count_parameters": "aime.training:parameter_count"}
CAUSAL_PERCEIVER = of("aime.legacy.perceivers", "CausalPerceiverIO")
PREDICTOR = of("aime.legacy.perceivers", "PerceiverTokenPredictor")
TOKENIZER = of("aime.legacy.perceivers", "VQPTTokenizer")
PERCEIVER = CAUSAL_PERCEIVER | PREDICTOR | TOKENIZER
QUANTIZER = {"VectorQuantize": "aime.perceiver_io:VectorQuantizer"}
GAMMA = of("aime.legacy.priors", "GammaPosterior")
STICKS = (
    of("aime.generative_prior", "AdaptiveStickBreaking") | GAMMA | of("aime.generative_prior", "KumaraswamyNetwork")
)
KUMARASWAMY = of("aime.generative_prior", "KumaraswamyStable")
PRIOR = of("aime.legacy.priors", "DPGMMPrior")
LSTM = of("aime.legacy.adapters", "LSTMLayer")
ATTENTION_POSTERIOR = of("aime.legacy.adapters", "AttentionPosterior")
ATTENTION_PRIOR = of("aime.legacy.adapters", "AttentionPrior")
ATTENTION_SCHEMA = of("aime.legacy.adapters", "AttentionSchema")
SLOTS = of("aime.attention_schema", "SlotAttention")
CONV_GRU = of("aime.legacy.adapters", "ConvGRUCell")
ATTENTION = ATTENTION_SCHEMA | ATTENTION_POSTERIOR | ATTENTION_PRIOR | SLOTS | CONV_GRU
IMAGES = of("aime.legacy.images", "VAEEncoder", "VAEDecoder") | of("aime.encoder_decoder", "GramLoss")
RGB = of("aime.multi_task_learning", "RGB") | {"AbsWeighting": "aime.multi_task_learning:GradientBalancer"}
AGGREGATOR = of("aime.multi_task_learning", "LossAggregator")
ELBO = of("aime.multi_task_learning.losses", "ELBOLoss")
PERCEIVER_LOSS = of("aime.multi_task_learning.losses", "PerceiverLoss")
PREDICTIVE = of("aime.multi_task_learning.losses", "PredictiveLoss")
ADVERSARIAL = of("aime.multi_task_learning.losses", "AdversarialLoss")
MODELS = of("aime.models", "check_tensor", "ImageDiscriminator") | of("aime.legacy.critics", "TemporalDiscriminator")

MODULES: dict[str, dict[str, str] | str] = {
    "world_model": WORLD_MODEL,
    "world_model.train": "aime.world_model.train",
    "world_model.evaluate": "aime.world_model.evaluate",
    "training": TRAINING,
    "perceiver_io": PERCEIVER,
    "perceiver_io.causal_perceiver": CAUSAL_PERCEIVER,
    "perceiver_io.predictor": PREDICTOR,
    "perceiver_io.tokenizer": TOKENIZER,
    "perceiver_io.modules": QUANTIZER,
    "perceiver_io.modules.vector_quantize": QUANTIZER,
    "generative_prior": PRIOR | STICKS | KUMARASWAMY,
    "generative_prior.dpgmm_prior": PRIOR,
    "generative_prior.stick_breaking": STICKS,
    "generative_prior.distributions": KUMARASWAMY | STICKS,
    "generative_prior.distributions.Kumaraswamy": KUMARASWAMY,
    "generative_prior.distributions.gamma_posterior": GAMMA,
    "temporal_dynamics": LSTM,
    "temporal_dynamics.lstm": LSTM,
    "attention_schema": ATTENTION,
    "attention_schema.attention_schema": ATTENTION_SCHEMA,
    "attention_schema.attention_posterior": ATTENTION_POSTERIOR,
    "attention_schema.attention_prior": ATTENTION_PRIOR,
    "attention_schema.slot_attention": SLOTS,
    "attention_schema.spatial_utils": CONV_GRU,
    "encoder_decoder": IMAGES,
    "multi_task_learning": RGB | AGGREGATOR,
    "multi_task_learning.rgb_optimizer": RGB,
    "multi_task_learning.loss_aggregator": AGGREGATOR,
    "multi_task_learning.losses": ELBO | PERCEIVER_LOSS | PREDICTIVE | ADVERSARIAL,
    "multi_task_learning.losses.elbo_loss": ELBO,
    "multi_task_learning.losses.perceiver_loss": PERCEIVER_LOSS,
    "multi_task_learning.losses.predictive_loss": PREDICTIVE,
    "multi_task_learning.losses.adversarial_loss": ADVERSARIAL,
    "models": MODELS,
    "nvae_architecture": IMAGES,
    "agac_torch": of("aime.control.agac", "Adversary") | of("aime.control.actor_critic", "ActorCritic"),
    "parallel_environment": of("aime.envs", "ParallelEnvironment"),
    "_penv": of("aime.envs", "ParallelEnvironment"),
    "VRNN.RGB": RGB,
    "VRNN.lstm": LSTM,
    "VRNN.Kumaraswamy": KUMARASWAMY,
    "VRNN.dpgmm_stickbreaking_prior_vrnn": WORLD_MODEL | PRIOR | STICKS | ATTENTION,
    "VRNN.dmc_vb_transition_dynamics_trainer": TRAINING,
    "VRNN.perceiver": PERCEIVER,
    "VRNN.perceiver.video_prediction_perceiverIO": PERCEIVER,
    "VRNN.perceiver.tokenizer": TOKENIZER,
    "VRNN.perceiver.predictor": PREDICTOR,
    "VRNN.perceiver.vector_quantize": QUANTIZER,
}

PROGRAMS: dict[str, str] = {
    "world_model.train": "aime.world_model.train",
    "world_model.evaluate": "aime.world_model.evaluate",
    "VRNN.dmc_vb_transition_dynamics_trainer": "aime.world_model.train",
}
"""Modules that the documents start as programs, and the module here whose `main` that is."""


def canonical(name: str) -> str:
    """A module's name without its first word where that is one of `PREFIXES`."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def is_package(name: str) -> bool:
    """Whether the table has modules below this one."""
    return any(key.startswith(f"{name}.") for key in MODULES) or f"{name}." in PREFIXES
