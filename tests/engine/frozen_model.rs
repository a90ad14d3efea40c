//! What a frozen model spares, counted: no weight gradient, prompt rows alone in the encoder's first layer, nothing below
//! the decoder's first cross attention, and no head gradient in evaluation.
//!
//! The counts are exact: the operations of every matrix product, by formula, against [`Device::operations`].

use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Device, Scorer};
use promptmix::pretrained::{Activation, T5Config};

use crate::setting::{Case, Setting, examples, small_config};

/// Operations of an m × k by k × n product.
fn product(m: usize, n: usize, k: usize) -> u64 {
    2 * m as u64 * n as u64 * k as u64
}

/// The sizes of a step, and the operations of its parts.
struct Step<'a> {
    config: &'a T5Config,
    /// M.
    prompt: usize,
    /// Encoder rows n (prompt included) and target tokens t of each example.
    lengths: Vec<(usize, usize)>,
}

impl<'a> Step<'a> {
    fn new(setting: &'a Setting) -> Self {
        let length = |example: &promptmix::backend::Example| {
            (example.source.len() + setting.prompt_length, example.target.len())
        };
        let lengths = setting.examples.iter().map(length).collect();
        Self { config: setting.config(), prompt: setting.prompt_length, lengths }
    }

    fn encoder_rows(&self) -> usize {
        self.lengths.iter().map(|(n, _)| n).sum()
    }

    fn decoder_rows(&self) -> usize {
        self.lengths.iter().map(|(_, t)| t).sum()
    }

    fn total(&self) -> usize {
        self.config.attention_width()
    }

    fn each(&self, operations: impl Fn(usize, usize) -> u64) -> u64 {
        self.lengths.iter().map(|&(n, t)| operations(n, t)).sum()
    }

    /// Both products of a feed-forward, or of its dX: the same.
    fn feed_forward(&self, rows: usize) -> u64 {
        let inputs = if self.config.activation.is_gated() { 2 } else { 1 };
        product(rows, (1 + inputs) * self.config.d_ff, self.config.d_model)
    }

    /// One projection between D and H·K, either way.
    fn projection(&self, rows: usize) -> u64 {
        product(rows, self.total(), self.config.d_model)
    }

    fn encoder_layer_forward(&self) -> u64 {
        let rows = self.encoder_rows();
        let attention = self.each(|n, _| 2 * product(n, n, self.total()));
        4 * self.projection(rows) + attention + self.feed_forward(rows)
    }

    /// dX of every projection; in attention the scores again, d_p, d_q, d_k and d_v.
    fn encoder_layer_backward(&self) -> u64 {
        let rows = self.encoder_rows();
        let attention = self.each(|n, _| 5 * product(n, n, self.total()));
        4 * self.projection(rows) + attention + self.feed_forward(rows)
    }

    /// As any layer's, but d_q for prompt queries, d_k and d_v for prompt keys, and dX of q, k, v on prompt rows.
    fn first_encoder_layer_backward(&self) -> u64 {
        let (rows, m) = (self.encoder_rows(), self.prompt);
        let attention = self.each(|n, _| {
            let prompt_queries = 3 * product(m, n, self.total()) + 2 * product(m, m, self.total());
            let other_queries = 4 * product(n - m, m, self.total());
            prompt_queries + other_queries
        });
        let prompt_rows = self.lengths.len() * m;
        self.projection(rows) + 3 * self.projection(prompt_rows) + attention + self.feed_forward(rows)
    }

    /// q and o, and either two products with W_k and W_v a target row and two with the encoder's rows a head, or keys and
    /// values of every encoder row.
    fn cross_attention_forward(&self, absorbed: bool) -> u64 {
        let rows = self.decoder_rows();
        let (heads, width) = (self.config.num_heads, self.config.d_model);
        let attention = if absorbed {
            2 * self.projection(rows) + self.each(|n, t| 2 * product(t * heads, n, width))
        } else {
            2 * self.projection(self.encoder_rows()) + self.each(|n, t| 2 * product(t, n, self.total()))
        };
        2 * self.projection(rows) + attention
    }

    /// With `queries` also d_q and what it needs.
    fn cross_attention_backward(&self, absorbed: bool, queries: bool) -> u64 {
        let rows = self.decoder_rows();
        let (heads, width) = (self.config.num_heads, self.config.d_model);
        let further = u64::from(queries);
        let attention = if absorbed {
            (1 + further) * self.projection(rows)
                + self.each(|n, t| (3 + further) * product(t * heads, n, width))
        } else {
            2 * self.projection(self.encoder_rows())
                + self.each(|n, t| (3 + further) * product(t, n, self.total()))
        };
        (1 + further) * self.projection(rows) + attention
    }

    fn decoder_layer_forward(&self, absorbed: bool) -> u64 {
        let rows = self.decoder_rows();
        let attention = self.each(|_, t| 2 * product(t, t, self.total()));
        4 * self.projection(rows)
            + attention
            + self.cross_attention_forward(absorbed)
            + self.feed_forward(rows)
    }

    fn decoder_layer_backward(&self, absorbed: bool) -> u64 {
        let rows = self.decoder_rows();
        let attention = self.each(|_, t| 5 * product(t, t, self.total()));
        4 * self.projection(rows)
            + attention
            + self.cross_attention_backward(absorbed, true)
            + self.feed_forward(rows)
    }

    /// The feed-forward and the encoder's part of cross attention, and there it ends.
    fn first_decoder_layer_backward(&self, absorbed: bool) -> u64 {
        self.feed_forward(self.decoder_rows()) + self.cross_attention_backward(absorbed, false)
    }

    fn head(&self) -> u64 {
        product(self.decoder_rows(), self.config.vocab_size, self.config.d_model)
    }

    /// Of the bottleneck scorer: W_down x, W_up u, and the sum over the sources.
    fn mix_forward(&self, setting: &Setting) -> u64 {
        let (examples, width) = (self.lengths.len(), self.config.d_model);
        2 * product(examples, setting.bottleneck_dim, width)
            + product(examples, self.prompt * width, setting.sources)
    }

    /// d_u, d_W_up and d_W_down: the only gradients of matrices.
    fn mix_backward(&self, setting: &Setting) -> u64 {
        3 * product(self.lengths.len(), setting.bottleneck_dim, self.config.d_model)
    }

    fn forward(&self, setting: &Setting, absorbed: bool) -> u64 {
        self.mix_forward(setting)
            + self.config.num_layers as u64 * self.encoder_layer_forward()
            + self.config.num_decoder_layers as u64 * self.decoder_layer_forward(absorbed)
            + self.head()
    }

    fn backward(&self, setting: &Setting, absorbed: bool) -> u64 {
        self.head()
            + (self.config.num_decoder_layers as u64 - 1) * self.decoder_layer_backward(absorbed)
            + self.first_decoder_layer_backward(absorbed)
            + (self.config.num_layers as u64 - 1) * self.encoder_layer_backward()
            + self.first_encoder_layer_backward()
            + self.mix_backward(setting)
    }
}

/// Counted operations of the loss alone, and of the loss with its gradient.
fn counted(setting: &Setting) -> [u64; 2] {
    let case: Case<Cpu<f32>> = setting.build(2);
    let before = case.backend.operations();
    case.loss(&case.values);
    let between = case.backend.operations();
    case.gradient();
    [between - before, case.backend.operations() - between]
}

const SHORT: [(usize, usize); 3] = [(17, 1), (30, 2), (1, 1)];
const LONG: [(usize, usize); 3] = [(4, 9), (11, 10), (1, 7)];

fn settings() -> Vec<(Setting, bool)> {
    let mut settings = Vec::new();
    for (activation, tied, layers, decoder_layers) in [
        (Activation::Relu, true, 1, 1),
        (Activation::GatedGelu, false, 2, 3),
        (Activation::Relu, false, 3, 2),
    ] {
        let config = small_config(activation, tied, layers, decoder_layers);
        for (lengths, absorbed) in [(SHORT, true), (LONG, false)] {
            let mut setting = Setting::new(config.clone(), examples(1, &config, &lengths));
            settings.push((setting.clone(), absorbed));
            setting.dropout = (0.1, 1);
            setting.prompt_length = 9;
            settings.push((setting, absorbed));
        }
    }
    settings
}

#[test]
fn evaluation_computes_the_forward_pass_and_nothing_else() {
    for (setting, absorbed) in settings() {
        assert_eq!(
            counted(&setting)[0],
            Step::new(&setting).forward(&setting, absorbed),
            "absorbed {absorbed}"
        );
    }
}

#[test]
fn a_step_computes_gradients_of_activations_on_rows_that_lead_to_a_trained_number() {
    for (setting, absorbed) in settings() {
        let step = Step::new(&setting);
        let [_, operations] = counted(&setting);
        let expected = step.forward(&setting, absorbed) + step.backward(&setting, absorbed);
        assert_eq!(operations, expected, "absorbed {absorbed}");
    }
}

/// One more source token adds a row to the encoder. In the first layer's backward it costs a row of the feed-forward, of o,
/// and of attention against the prompt: nothing of q, k or v, and nothing of attention among tokens.
#[test]
fn a_source_token_is_no_row_of_the_first_layers_q_k_v() {
    let config = small_config(Activation::Relu, true, 1, 1);
    let backward = |source: usize| {
        let setting = Setting::new(config.clone(), examples(1, &config, &[(source, 1)]));
        let [forward, step] = counted(&setting);
        step - forward
    };
    let (d, f, total, heads, m) = (13, 11, 12, 3, 5);
    let feed_forward = 2 * product(1, f, d);
    let o = product(1, total, d);
    // d_p of the prompt's queries, their scores and d_q; the token's query against prompt keys: scores, d_p, d_k, d_v.
    let self_attention = (3 + 4) * product(1, m, total);
    // d_p, and the two terms of d_h.
    let cross_attention = 3 * product(heads, 1, d);
    let a_token = feed_forward + o + self_attention + cross_attention;
    for source in [8, 9, 31] {
        assert_eq!(backward(source + 1) - backward(source), a_token);
    }
}

/// Backward is forward's linear layers again, less what the first layers spare. A weight gradient would cost as much again.
#[test]
fn no_weight_has_a_gradient() {
    let config = small_config(Activation::GatedGelu, false, 2, 2);
    let setting = Setting::new(config.clone(), examples(1, &config, &SHORT));
    let step = Step::new(&setting);
    let (rows, targets, prompts) =
        (step.encoder_rows(), step.decoder_rows(), SHORT.len() * setting.prompt_length);
    let linear_forward = 2 * (4 * step.projection(rows) + step.feed_forward(rows))
        + 2 * (8 * step.projection(targets) + step.feed_forward(targets))
        + step.head();
    let spared = 3 * (step.projection(rows) - step.projection(prompts))
        // Of the first decoder layer: q, k, v, o, cross q, and cross k, by which d_q would come.
        + 6 * step.projection(targets);
    let attention = step.each(|n, t| {
        let m = setting.prompt_length;
        let first = 3 * product(m, n, step.total()) + 2 * product(m, m, step.total());
        let first = first + 4 * product(n - m, m, step.total());
        let cross = |times| times * product(t * config.num_heads, n, config.d_model);
        first + 5 * product(n, n, step.total()) + 5 * product(t, t, step.total()) + cross(3) + cross(4)
    });
    let [forward, both] = counted(&setting);
    assert_eq!(both - forward, linear_forward - spared + attention + step.mix_backward(&setting));
}

/// A frozen model before a plain prompt needs no product at all for its prompt.
#[test]
fn a_plain_or_uniform_prompt_has_no_scorer_to_pay_for() {
    let config = small_config(Activation::Relu, true, 1, 1);
    let mut setting = Setting::new(config.clone(), examples(1, &config, &SHORT));
    let step = Step::new(&setting);
    let (mix_forward, mix_backward) = (step.mix_forward(&setting), step.mix_backward(&setting));
    let bottleneck = counted(&setting);
    setting.mixing.scorer = Some(Scorer::Uniform);
    let uniform = counted(&setting);
    let scoring = 2 * product(SHORT.len(), setting.bottleneck_dim, config.d_model);
    assert_eq!(bottleneck[0] - uniform[0], scoring);
    assert_eq!(bottleneck[1] - uniform[1], scoring + mix_backward);
    setting.mixing.scorer = None;
    assert_eq!(bottleneck[0] - counted(&setting)[0], mix_forward);
}
