# SPDX-License-Identifier: Apache-2.0
"""Cubit's models for transformers: the file that //launch:export puts beside
the weights. Works offline with trust_remote_code=True.

Kernel ridge regression (mixer "cubit", arXiv:2605.06501), DeltaFormer
("deltaformer", arXiv:2505.19488) and softmax attention ("softmax") share one
model. The formulas stand here as in Cubit's reference code, a block of rows at
a time: exact, differentiable, on any device, and without fused kernels.

A system is solved in fp32 whatever the dtype of the weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
)

# Rows of the kernel that are in memory at a time.
BLOCK_ROWS = 256
NORM_GUARD = 1e-12


class CubitConfig(PretrainedConfig):
    model_type = "cubit"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        mixer="cubit",
        cubit_share=False,
        cubit_lrr=True,
        softmax_qk_norm=False,
        deltaformer_w="own",
        deltaformer_beta="sigmoid",
        num_hidden_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        vocab_size=50304,
        valid_vocab_size=50257,
        max_position_embeddings=1024,
        norm="layer_norm",
        norm_epsilon=1e-5,
        mlp="gelu",
        positional_encoding="rope",
        rope_base=10000.0,
        use_bias=True,
        initializer_range=0.02,
        use_cache=True,
        **kwargs,
    ):
        self.mixer = mixer
        self.cubit_share = cubit_share
        self.cubit_lrr = cubit_lrr
        self.softmax_qk_norm = softmax_qk_norm
        self.deltaformer_w = deltaformer_w
        self.deltaformer_beta = deltaformer_beta
        self.num_hidden_layers = num_hidden_layers
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.vocab_size = vocab_size  # rows of the embedding, with padding
        self.valid_vocab_size = valid_vocab_size  # ids that exist
        self.max_position_embeddings = max_position_embeddings
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.mlp = mlp
        self.positional_encoding = positional_encoding
        self.rope_base = rope_base
        self.use_bias = use_bias
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(**kwargs)


def rotary_angles(config, positions):
    """cos and sin [B, 1, T, K / 2] for positions [B, T], computed in fp64."""
    dim = config.hidden_size // config.num_attention_heads
    steps = torch.arange(0, dim, 2, device=positions.device)
    frequencies = config.rope_base ** (-steps.to(torch.float64) / dim)
    angles = positions[:, None, :, None].to(torch.float64) * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x, angles):
    """Half-rotation: element i turns with element i + K / 2."""
    if angles is None:
        return x
    cos, sin = angles
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


def inverse_norm(x):
    squares = x.float().square().sum(dim=-1, keepdim=True)
    return torch.rsqrt(squares + NORM_GUARD)


def masked_softmax(scores, visible):
    """Rows that see nothing become zeros, not NaN."""
    scores = scores.masked_fill(~visible, float("-inf"))
    top = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - top.masked_fill(top == float("-inf"), 0))
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-37)


def scores_of(rows, columns):
    return torch.matmul(rows.float(), columns.float().transpose(-1, -2))


def solve_rows(off_diagonal, diagonal, rhs, past):
    """X of new rows: off_diagonal [.., n, past + n] X + diagonal X = rhs."""
    count = past.shape[-2]
    rhs = rhs - torch.matmul(off_diagonal[..., :count], past)
    system = off_diagonal[..., count:].tril(-1) + torch.diag_embed(diagonal)
    return torch.linalg.solve_triangular(system, rhs, upper=False)


class Visibility:
    """Which earlier tokens the new ones see: all, but no padding. A padded
    token sees itself, so that every system has a diagonal."""

    def __init__(self, attention_mask, count, past, device):
        self.count = count
        self.past = past
        self.device = device
        self.present = None
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ValueError(
                    "attention_mask has shape "
                    f"{tuple(attention_mask.shape)}; give [batch, length] "
                    "with 1 for tokens and 0 for padding"
                )
            self.present = attention_mask.to(device=device, dtype=torch.bool)

    def blocks(self):
        """Slices of new rows, each with what they see, [B or 1, 1, n, end]."""
        for begin in range(0, self.count, BLOCK_ROWS):
            end = min(begin + BLOCK_ROWS, self.count)
            columns = torch.arange(self.past + end, device=self.device)
            rows = columns[self.past + begin :, None]
            seen = (columns <= rows)[None, None]
            if self.present is not None:
                present = self.present[:, None, None, : self.past + end]
                seen = seen & (present | (columns == rows))
            yield slice(begin, end), seen


class Mixer(nn.Module):
    """Projections around a token mixer. A subclass says what a new token adds
    to the cache as (keys, values) and how it reads them."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.score_scale = 1.0 / math.sqrt(self.head_dim)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_projection(name, config.hidden_size)

    def add_projection(self, name, width):
        linear = nn.Linear(
            self.config.hidden_size, width, bias=self.config.use_bias
        )
        setattr(self, name, linear)

    def add_scalar(self, name, initial):
        value = torch.full((self.num_heads,), float(initial))
        setattr(self, name, nn.Parameter(value))

    def per_head(self, scalar):
        return scalar.float()[None, :, None, None]

    def heads(self, x):
        """[B, T, H * w] to [B, H, T, w]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def forward(self, x, angles, visible, cache):
        out = self.mix(x, angles, visible, cache)
        out = out.to(x.dtype).transpose(1, 2).reshape(x.shape)
        return self.o_proj(out)

    def attend(self, q, k, values, seen):
        """softmax(q k^T / sqrt(K)) over the columns that `seen` has."""
        count = seen.shape[-1]
        scores = scores_of(q, k[..., :count, :]) * self.score_scale
        weights = masked_softmax(scores, seen)
        return torch.matmul(weights, values[..., :count, :])

    def past(self, cache, keys, values):
        """What the cache holds of earlier tokens, empty if there is none."""
        if cache is None or self.layer >= len(cache.layers):
            return keys[..., :0, :], values[..., :0, :]
        entry = cache.layers[self.layer]
        if entry.get_seq_length() == 0:
            return keys[..., :0, :], values[..., :0, :]
        return entry.keys, entry.values

    def remember(self, cache, keys, values):
        if cache is not None:
            cache.update(keys, values, self.layer)


class SoftmaxMixer(Mixer):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        if config.softmax_qk_norm:
            self.add_scalar("qk_gain", self.head_dim)

    def mix(self, x, angles, visible, cache):
        q = self.heads(self.q_proj(x))
        k = self.heads(self.k_proj(x))
        v = self.heads(self.v_proj(x))
        if self.config.softmax_qk_norm:
            q = (q * inverse_norm(q) * self.per_head(self.qk_gain)).to(x.dtype)
            k = (k * inverse_norm(k)).to(x.dtype)
        q, k = rotate(q, angles), rotate(k, angles)
        past_k, past_v = self.past(cache, k, v)
        self.remember(cache, k, v)
        k = torch.cat((past_k, k), dim=-2)
        v = torch.cat((past_v, v), dim=-2).float()
        out = [
            self.attend(q[..., rows, :], k, v, seen)
            for rows, seen in visible.blocks()
        ]
        return torch.cat(out, dim=-2)


class SolvingMixer(Mixer):
    """Softmax attention over the solution X of a triangular system."""

    def solve_and_attend(self, q, keys, past_x, rows_of_x, visible):
        """rows_of_x(rows, seen, x) gives X of a block of new rows from the
        rows before it."""
        x, out = past_x, []
        for rows, seen in visible.blocks():
            x = torch.cat((x, rows_of_x(rows, seen, x)), dim=-2)
            out.append(self.attend(q[..., rows, :], keys, x, seen))
        return torch.cat(out, dim=-2), x


class KrrMixer(SolvingMixer):
    """(P + lambda I) X = diag(s) V with P = softmax(r rn^T), out = A X.
    The cache keeps k, rn and X; with r = k, only k, the factors that turn k
    into rn, and X."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if not config.cubit_share:
            self.add_projection("r_proj", config.hidden_size)
        self.add_scalar("log_lambda", math.log(1e-10))
        self.add_scalar("scale", 1.0)
        if config.cubit_lrr:
            self.add_projection("lrr_proj", self.num_heads)
            self.add_scalar("lower", 0.5)
            self.add_scalar("upper_scale", 1.5)

    def scaled_values(self, x):
        v = self.heads(self.v_proj(x)).float()
        if not self.config.cubit_lrr:
            return v
        gate = torch.sigmoid(self.heads(self.lrr_proj(x)).float())
        factor = self.per_head(self.lower)
        return v * (factor + self.per_head(self.upper_scale) * gate)

    def mix(self, x, angles, visible, cache):
        q = rotate(self.heads(self.q_proj(x)), angles).float()
        k = rotate(self.heads(self.k_proj(x)), angles).float()
        r = k
        if not self.config.cubit_share:
            r = rotate(self.heads(self.r_proj(x)), angles).float()
        column_scale = self.per_head(self.scale) * inverse_norm(r)
        rhs = self.scaled_values(x)
        width = self.head_dim
        kept = column_scale if self.config.cubit_share else r * column_scale
        keys = torch.cat((k, kept), dim=-1)
        past_keys, past_x = self.past(cache, keys, rhs)
        all_keys = torch.cat((past_keys, keys), dim=-2)
        k, rn = all_keys[..., :width], all_keys[..., width:]
        if self.config.cubit_share:
            rn = k * rn
        ridge = torch.exp(self.log_lambda.float())[None, :, None]

        def rows_of_x(rows, seen, before):
            features = rn[..., : seen.shape[-1], :]
            p = masked_softmax(scores_of(r[..., rows, :], features), seen)
            diagonal = p.diagonal(before.shape[-2], -2, -1) + ridge
            return solve_rows(p, diagonal, rhs[..., rows, :], before)

        out, solution = self.solve_and_attend(q, k, past_x, rows_of_x, visible)
        self.remember(cache, keys, solution[..., past_x.shape[-2] :, :])
        return out


class DeltaFormerMixer(SolvingMixer):
    """(I + diag(beta) W) X = V with W = softmax(w k^T / sqrt(K)) below the
    diagonal, out = A X. The cache keeps k and X."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if config.deltaformer_w == "own":
            self.add_projection("w_proj", config.hidden_size)
        self.add_projection("beta_proj", self.num_heads)

    def mix(self, x, angles, visible, cache):
        q = rotate(self.heads(self.q_proj(x)), angles).float()
        k = rotate(self.heads(self.k_proj(x)), angles).float()
        v = self.heads(self.v_proj(x)).float()
        w = {"k": k, "q": q}.get(self.config.deltaformer_w)
        if w is None:
            w = rotate(self.heads(self.w_proj(x)), angles).float()
        beta = self.heads(self.beta_proj(x)).float()
        if self.config.deltaformer_beta == "sigmoid":
            beta = torch.sigmoid(beta)
        past_k, past_x = self.past(cache, k, v)
        all_k = torch.cat((past_k, k), dim=-2)

        def rows_of_x(rows, seen, before):
            keys = all_k[..., : seen.shape[-1], :]
            earlier = seen.tril(before.shape[-2] - 1)
            scores = scores_of(w[..., rows, :], keys) * self.score_scale
            p = masked_softmax(scores, earlier) * beta[..., rows, :]
            ones = torch.ones_like(p[..., 0])
            return solve_rows(p, ones, v[..., rows, :], before)

        out, solution = self.solve_and_attend(
            q, all_k, past_x, rows_of_x, visible
        )
        self.remember(cache, k, solution[..., past_x.shape[-2] :, :])
        return out


MIXERS = {
    "cubit": KrrMixer,
    "softmax": SoftmaxMixer,
    "deltaformer": DeltaFormerMixer,
}


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.centered = config.norm == "layer_norm"
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = None
        if self.centered and config.use_bias:
            self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, x):
        if self.centered:
            shape = self.weight.shape
            return F.layer_norm(x, shape, self.weight, self.bias, self.epsilon)
        squares = x.float().square().mean(dim=-1, keepdim=True)
        scaled = x.float() * torch.rsqrt(squares + self.epsilon)
        return scaled.to(x.dtype) * self.weight


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        self.gate_proj = None
        if config.mlp == "swiglu":
            self.gate_proj = nn.Linear(*sizes, bias=config.use_bias)
        self.up_proj = nn.Linear(*sizes, bias=config.use_bias)
        self.down_proj = nn.Linear(*sizes[::-1], bias=config.use_bias)

    def forward(self, x):
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.mixer_norm = Norm(config)
        self.mixer = MIXERS[config.mixer](config, layer)
        self.mlp_norm = Norm(config)
        self.mlp = Mlp(config)

    def forward(self, x, angles, visible, cache):
        x = x + self.mixer(self.mixer_norm(x), angles, visible, cache)
        return x + self.mlp(self.mlp_norm(x))


class CubitPreTrainedModel(PreTrainedModel):
    config_class = CubitConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["Block"]

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


class CubitModel(CubitPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = Norm(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def positions(self, attention_mask, count, past, device):
        """[B or 1, T]; padding on the left does not count."""
        if attention_mask is None:
            return torch.arange(past, past + count, device=device)[None]
        seen = attention_mask.long().cumsum(dim=-1) - 1
        return seen.clamp_min(0)[:, -count:]

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        return_dict=None,
        cache=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give one of input_ids and inputs_embeds")
        # transformers 5.24 and later call it cache.
        if past_key_values is None:
            past_key_values = cache
        x = inputs_embeds
        if x is None:
            x = self.embed_tokens(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0
        if past_key_values is not None:
            past = past_key_values.get_seq_length()
        count = x.shape[1]
        visible = Visibility(attention_mask, count, past, x.device)
        if position_ids is None:
            position_ids = self.positions(attention_mask, count, past, x.device)
        angles = None
        if self.config.positional_encoding == "rope":
            angles = rotary_angles(self.config, position_ids)
        for block in self.layers:
            x = block(x, angles, visible, past_key_values)
        x = self.norm(x)
        if return_dict is False:
            return (x, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=x, past_key_values=past_key_values
        )


class CubitForCausalLM(CubitPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = CubitModel(config)
        self.lm_head = nn.Linear(
            config.hidden_size, config.vocab_size, bias=False
        )
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        cache=None,
        **kwargs,
    ):
        """logits [B, T, vocab_size]; those of padding ids, which no text has,
        are the dtype's lowest number."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep if logits_to_keep else 0 :]
        else:
            hidden = hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        lowest = torch.finfo(logits.dtype).min
        logits[..., self.config.valid_vocab_size :] = lowest
        loss = None
        if labels is not None:
            targets = F.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten()
            )
        if return_dict is False:
            out = (logits, outputs.past_key_values)
            return out if loss is None else (loss,) + out
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values
        )
