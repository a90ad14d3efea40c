//! The trained state of a run: one flat vector, its segments, and how the optimizer treats each.

use std::ops::Range;

use crate::choice::choices;

choices! {
    /// How a mixture's weights are scored.
    pub enum Scorer {
        /// h = LayerNorm(W_up · silu(W_down · x_b)): the paper's.
        Bottleneck = "bottleneck",
        /// h = LayerNorm(W x_b).
        Linear = "linear",
        /// h = x_b.
        Dot = "dot",
        /// h as in bottleneck; one softmax a prompt row: a(m, j) = softmax_j(P_j(m) · h / temperature).
        Token = "token",
        /// a = 1 / (number of prompts).
        Uniform = "uniform",
        /// a = softmax of one learnt logit a prompt: the same for every input.
        Constant = "constant",
    }
}

impl Scorer {
    /// Whether h goes through W_down, silu and W_up.
    pub fn is_bottleneck(self) -> bool {
        matches!(self, Self::Bottleneck | Self::Token)
    }

    /// Whether weights depend on the input x_b.
    pub fn reads_input(self) -> bool {
        !matches!(self, Self::Uniform | Self::Constant)
    }

    /// Whether h is a LayerNorm's output.
    pub fn has_layer_norm(self) -> bool {
        self.is_bottleneck() || self == Self::Linear
    }
}

/// The mixture of prompts that stands before each example.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixing {
    /// How weights are scored; `None` for a plain target prompt (prompt tuning, SPoT).
    pub scorer: Option<Scorer>,
    /// What scores are divided by, unless the state holds a learnt one.
    pub temperature: f64,
    /// The target prompt is neither in the mixture nor added to it.
    pub without_target: bool,
    /// Epsilon of the scorer's LayerNorm.
    pub layer_norm_epsilon: f64,
}

impl Mixing {
    /// Rows of attention of an example with a prompt of `prompt_length` rows.
    pub fn attention_rows(&self, prompt_length: usize) -> usize {
        match self.scorer {
            None => 0,
            Some(Scorer::Token) => prompt_length,
            Some(_) => 1,
        }
    }

    /// A plain target prompt, no mixture.
    pub fn plain() -> Self {
        Self { scorer: None, temperature: 1.0, without_target: false, layer_norm_epsilon: 1e-5 }
    }
}

/// Which learning rate and decay a segment follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Target prompts: the prompt's learning rate, with weight decay.
    Prompt,
    /// The scorer: its own learning rate, with weight decay.
    Scorer,
    /// The logarithm of the temperature: the scorer's learning rate, no decay.
    Temperature,
}

/// A named range of the state.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Field-standard name: `target_prompts`, `w_down`, `w_up`, `weight`, `norm_weight`, `norm_bias`,
    /// `log_temperature`, `logits`, `input_mean`, `input_scale`.
    pub name: &'static str,
    /// Where it lies in the flat vector of one run.
    pub range: Range<usize>,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its learning rate.
    pub group: Group,
    /// Whether the optimizer moves it.
    pub trained: bool,
}

/// The segments of one run's state, in order of their ranges.
#[derive(Clone, Debug, PartialEq)]
pub struct StateLayout {
    segments: Vec<Segment>,
    /// M.
    pub prompt_length: usize,
    /// D.
    pub width: usize,
    /// Q.
    pub bottleneck_dim: usize,
    /// Target prompts: one a task.
    pub targets: usize,
}

impl StateLayout {
    /// The layout of `targets` target prompts of `prompt_length` × `width`, and the parameters of `mixing`'s scorer
    /// (bottleneck rank `bottleneck_dim`), with a learnt temperature if `learnt_temperature`.
    pub fn new(
        mixing: &Mixing,
        targets: usize,
        prompt_length: usize,
        width: usize,
        bottleneck_dim: usize,
        learnt_temperature: bool,
    ) -> Self {
        let mut layout = Self { segments: Vec::new(), prompt_length, width, bottleneck_dim, targets };
        if !mixing.without_target {
            layout.push("target_prompts", &[targets, prompt_length, width], Group::Prompt);
        }
        if let Some(scorer) = mixing.scorer {
            if scorer.is_bottleneck() {
                layout.push("w_down", &[bottleneck_dim, width], Group::Scorer);
                layout.push("w_up", &[width, bottleneck_dim], Group::Scorer);
            }
            if scorer == Scorer::Linear {
                layout.push("weight", &[width, width], Group::Scorer);
            }
            if scorer.has_layer_norm() {
                layout.push("norm_weight", &[width], Group::Scorer);
                layout.push("norm_bias", &[width], Group::Scorer);
            }
            if learnt_temperature && scorer.reads_input() {
                layout.push("log_temperature", &[1], Group::Temperature);
            }
        }
        layout
    }

    fn push(&mut self, name: &'static str, shape: &[usize], group: Group) {
        let start = self.len();
        let range = start..start + shape.iter().product::<usize>();
        self.segments.push(Segment { name, range, shape: shape.to_vec(), group, trained: true });
    }

    /// With the segment `logits`, one number for each of the `prompts` in the mixture: what [`Scorer::Constant`] learns.
    #[must_use]
    pub fn with_logits(mut self, prompts: usize) -> Self {
        self.push("logits", &[prompts], Group::Scorer);
        self
    }

    /// With the segments `input_mean` and `input_scale`, \[D\] each, which never move: every pooled input x_b becomes
    /// (x_b − mean) · scale.
    #[must_use]
    pub fn with_standardized_inputs(mut self) -> Self {
        self.push("input_mean", &[self.width], Group::Scorer);
        self.push("input_scale", &[self.width], Group::Scorer);
        self.freezing(|segment| segment.name.starts_with("input_"))
    }

    /// Keeps the optimizer from moving the segments that `frozen` selects.
    #[must_use]
    pub fn freezing(mut self, frozen: impl Fn(&Segment) -> bool) -> Self {
        for segment in &mut self.segments {
            segment.trained &= !frozen(segment);
        }
        self
    }

    /// Numbers in the state of one run.
    pub fn len(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.range.end)
    }

    /// Whether nothing at all is in the state.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers that the optimizer moves.
    pub fn trained(&self) -> usize {
        self.segments.iter().filter(|segment| segment.trained).map(|segment| segment.range.len()).sum()
    }

    /// All segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment called `name`, if this layout has one.
    pub fn segment(&self, name: &str) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.name == name)
    }

    /// Where `name` lies in the flat vector of `run`, in a stack of runs.
    pub fn range(&self, name: &str, run: usize) -> Option<Range<usize>> {
        let range = &self.segment(name)?.range;
        Some(run * self.len() + range.start..run * self.len() + range.end)
    }

    /// Where target prompt `target` of `run` lies; `None` if there is no such target.
    pub fn target_prompt(&self, run: usize, target: usize) -> Option<Range<usize>> {
        let all = self.range("target_prompts", run).filter(|_| target < self.targets)?;
        let length = self.prompt_length * self.width;
        Some(all.start + target * length..all.start + (target + 1) * length)
    }
}

/// One run's part in an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct OptimizerStep {
    /// Learning rate of the prompts at this step.
    pub prompt_learning_rate: f64,
    /// Learning rate of the scorer at this step.
    pub scorer_learning_rate: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// First moment's decay; 0.9.
    pub beta1: f64,
    /// Second moment's decay; 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; 1e-8.
    pub epsilon: f64,
    /// The gradient's norm is scaled down to this; infinity for no clip.
    pub max_grad_norm: f64,
}

impl OptimizerStep {
    /// AdamW at the given learning rates with betas 0.9 and 0.999, epsilon 1e-8, no decay and no clip.
    pub fn new(prompt_learning_rate: f64, scorer_learning_rate: f64) -> Self {
        Self {
            prompt_learning_rate,
            scorer_learning_rate,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: f64::INFINITY,
        }
    }
}

/// What a step's passes add up of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStatistics {
    /// The objectives of its label rows, each by its weight: the run's loss when the step's last pass is in.
    pub loss: f64,
    /// The entropies -sum_j a_j ln a_j of its rows of attention.
    pub entropy: f64,
}

/// What a step came to for one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// What its passes added up.
    pub statistics: StepStatistics,
    /// L2 norm of the trained segments' gradient, before the clip.
    pub gradient_norm: f64,
    /// False if loss or gradient held a NaN or an infinity, or those of a step before that was not reported yet; the state
    /// is then as it was.
    pub applied: bool,
}
