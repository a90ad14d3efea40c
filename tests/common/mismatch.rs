//! Every op of every family on operands that fit, and with one of them of another shape: an error that names the operand.

use promptmix::backend::{
    Activation, Backend, Batch, CrossAttention, CrossAttentionBackward, DecodeStep, DropoutStep, Embedding,
    Example, FeedForward, FeedForwardBackward, FinalNorm, FinalNormBackward, Format, Heads, LmHead, Mask,
    Mix, Mixing, OptimizerStep, Projection, ProjectionBackward, PromptRows, Readers, Residual,
    ResidualProjection, ResidualProjectionBackward, Scope, Scorer, SelfAttention, SelfAttentionBackward,
    SelfAttentionOutputBackward, Side, Site, SiteKind, StateLayout, StepStatistics,
};
use promptmix::{Error, Result};

/// Its columns, like all here, are a multiple of 8, as the GPU wants.
const HEADS: Heads = Heads { count: 3, width: 8 };
/// H·K.
const TOTAL: usize = HEADS.count * HEADS.width;
/// D.
const WIDTH: usize = 16;
/// F.
const INNER: usize = 32;
/// V.
const WORDS: usize = 61;
/// M.
const PROMPT: usize = 2;
/// S.
const SOURCES: usize = 3;
/// How far the position bias reaches.
const MAX_DISTANCE: usize = 5;
const EPSILON: f64 = 1e-6;

/// An op whose operands are made by name, so that one of them can be of another shape.
struct Op<B: Backend> {
    name: &'static str,
    run: fn(&Maker<'_, B>) -> Result<()>,
    operands: &'static [Operand],
}

/// An operand, and what an error names where its shape is another.
#[derive(Clone, Copy)]
struct Operand {
    name: &'static str,
    /// What is named with other rows; `None` where any number of rows will do.
    rows: Option<&'static str>,
    /// What is named with other columns.
    columns: Option<&'static str>,
    /// One row more, or one less.
    step: isize,
}

/// An operand that must have its very shape.
const fn own(name: &'static str) -> Operand {
    Operand { name, rows: Some(name), columns: Some(name), step: 1 }
}

/// An operand of which there must be so many numbers, or one of which only the rows are given.
const fn count(name: &'static str) -> Operand {
    Operand { name, rows: Some(name), columns: None, step: 1 }
}

/// An operand that decides the shape of others: those are named.
const fn decides(name: &'static str, rows: &'static str, columns: &'static str) -> Operand {
    Operand { name, rows: Some(rows), columns: Some(columns), step: 1 }
}

/// A table that must have at least the rows of the tokens; its width decides that of what is named.
const fn table(name: &'static str, columns: &'static str) -> Operand {
    Operand { name, rows: Some(name), columns: Some(columns), step: -1 }
}

/// Makes operands, all of them of their shape but one.
struct Maker<'a, B> {
    device: &'a B,
    batch: &'a Batch,
    /// The operand of another shape, and its rows and columns more.
    other: Option<(&'static str, [isize; 2])>,
    /// Dropout of every op that has one.
    mask: Mask<'a>,
}

impl<B: Backend> Maker<'_, B> {
    /// Makes operands of their shape alone.
    fn fitting(&self) -> Self {
        Maker { other: None, ..*self }
    }

    fn shape(&self, name: &str, shape: [usize; 2]) -> [usize; 2] {
        match self.other {
            Some((other, more)) if other == name => {
                [0, 1].map(|axis| shape[axis].checked_add_signed(more[axis]).expect("a shape"))
            }
            _ => shape,
        }
    }

    fn count(&self, name: &str, count: usize) -> usize {
        self.shape(name, [count, 0])[0]
    }

    fn rows(&self, name: &str, rows: usize, columns: usize, format: Format) -> Result<B::Rows> {
        let [rows, columns] = self.shape(name, [rows, columns]);
        self.device.rows(rows, columns, format)
    }

    /// Rows `name` with their norm, which goes by `the norm of name`.
    fn residual(&self, name: &str, rows: usize, width: usize) -> Result<Residual<B>> {
        let [rows, width] = self.shape(name, [rows, width]);
        let [norms, of] = self.shape(&format!("the norm of {name}"), [rows, width]);
        // A norm may say one column or those of its rows: no other.
        let format = if of == width { Format::Norm } else { Format::Float };
        let x = self.device.rows(rows, width, Format::Residual)?;
        Ok(Residual { x, r: self.device.rows(norms, of, format)? })
    }

    fn weight(&self, name: &str, out: usize, input: usize, readers: Readers) -> Result<B::Weight> {
        let [out, input] = self.shape(name, [out, input]);
        self.device.weight(vec![0.5; out * input], out, input, readers)
    }

    fn position_bias(&self) -> Result<B::PositionBias> {
        let heads = self.count("the position bias", HEADS.count);
        let max_distance = self.count("a head's position bias", 2 * MAX_DISTANCE + 1);
        self.device.position_bias(vec![vec![0.0; max_distance]; heads], MAX_DISTANCE)
    }

    fn layout(&self) -> StateLayout {
        StateLayout::new(&mixing(), 1, PROMPT, WIDTH, 7, false)
    }

    fn state(&self) -> Result<B::State> {
        let length = self.count("the state", self.layout().len());
        self.device.state(&self.layout(), &vec![0.5; length], 1)
    }

    fn sources(&self) -> Result<B::Sources> {
        let [length, width] = self.shape("the sources", [PROMPT, WIDTH]);
        self.device.sources(&vec![0.5; SOURCES * length * width], SOURCES, length, width)
    }

    fn table(&self) -> Result<B::Weight> {
        self.weight("the embedding table", WORDS, WIDTH, Readers::Lookup)
    }

    fn encoder(&self) -> usize {
        self.batch.rows(Side::Encoder)
    }

    fn decoder(&self) -> usize {
        self.batch.rows(Side::Decoder)
    }
}

fn mixing() -> Mixing {
    let scorer = Some(Scorer::Bottleneck);
    Mixing { scorer, temperature: 3.0, without_target: false, layer_norm_epsilon: 1e-5 }
}

/// Sources of 3 and 2 tokens, targets of 2 and 1, the last of them the last word of the vocabulary.
fn batch(longer_by: usize) -> Batch {
    let last = WORDS as u32 - 1;
    let examples = [
        Example { source: vec![5; 3 + longer_by], target: vec![7, last], ..Example::default() },
        Example { source: vec![9; 2], target: vec![last; 1 + longer_by], ..Example::default() },
    ];
    Batch::pack(&examples, PROMPT, 0, WORDS).expect("a batch")
}

/// Runs every op on what fits, and then with each operand of another shape: what each of these said, which is the same on every
/// device.
///
/// # Panics
/// If what fits is refused, or what does not is not refused by an [`Error::Tensor`] with the name of the operand.
pub fn every_op_names_the_operand_that_does_not_fit<B: Backend>(device: &B) -> Vec<String> {
    let batch = batch(0);
    let mut said = Vec::new();
    for op in ops::<B>() {
        let fitting = Maker { device, batch: &batch, other: None, mask: None };
        (op.run)(&fitting).unwrap_or_else(|error| panic!("{} of what fits: {error}", op.name));
        for operand in op.operands {
            let axes = [(operand.rows, [operand.step, 0]), (operand.columns, [0, 8])];
            for (named, more) in axes.into_iter().filter_map(|(named, more)| Some((named?, more))) {
                let case = format!("{}, {} of {more:?} more", op.name, operand.name);
                let refused =
                    (op.run)(&Maker { device, batch: &batch, other: Some((operand.name, more)), mask: None });
                said.push(format!(
                    "{case}: {}",
                    refused.as_ref().map_or_else(Error::to_string, |()| "nothing".into())
                ));
                match refused {
                    Err(Error::Tensor { tensor, expected, found, .. }) => {
                        assert_eq!(tensor, named, "{case}: expected {expected}, found {found}");
                        assert_ne!(expected, found, "{case}");
                    }
                    Err(error) => panic!("{case}: {error}"),
                    Ok(()) => panic!("{case}: not refused"),
                }
            }
        }
        device.synchronize().unwrap_or_else(|error| panic!("after {}: {error}", op.name));
    }
    assert!(said.len() > 150, "{} cases", said.len());
    said
}

/// Every op that drops, on a batch of two runs, with a step's dropout that has a seed for one: their messages.
pub fn every_op_that_drops_asks_for_a_seed_a_run<B: Backend>(device: &B) {
    let examples: Vec<Example> = (0..2)
        .map(|run| Example { source: vec![5; 3], target: vec![7], run, ..Example::default() })
        .collect();
    let batch = Batch::pack(&examples, PROMPT, 0, WORDS).expect("a batch");
    let step = DropoutStep::new(0.1, 0, &[1]).expect("dropout");
    let mask = Some((&step, Site::new(Side::Decoder, SiteKind::FinalNorm, 0)));
    let said = "the dropout: expected a seed for each of 2 runs, found 1";
    let refused = |op: &Op<B>| {
        let result = (op.run)(&Maker { device, batch: &batch, other: None, mask });
        result.is_err_and(|error| error.to_string().contains(said))
    };
    let names: Vec<&str> = ops::<B>().into_iter().filter(refused).map(|op| op.name).collect();
    for part in ["add_project", "feed_forward", "self_attention", "cross_attention", "embed", "final_norm"] {
        for name in [part.to_owned(), format!("{part}_backward")] {
            assert!(names.iter().any(|found| found.starts_with(&name)), "{name} among {names:?}");
        }
    }
}

fn ops<B: Backend>() -> Vec<Op<B>> {
    let linear = [
        Op::<B> {
            name: "project",
            run: |m| {
                let (batch, side) = (m.batch, Side::Encoder);
                let input = &m.residual("x", m.encoder(), WIDTH)?;
                let weight = &m.weight("W", TOTAL, WIDTH, Readers::Many)?;
                let mut z = m.rows("z", m.encoder(), TOTAL, Format::Operand)?;
                m.device.project(Projection { batch, side, input, weight }, &mut z)
            },
            operands: const { &[own("x"), own("the norm of x"), decides("W", "z", "x"), own("z")] },
        },
        Op { name: "project_backward", run: |m| project_backward(m, Scope::All), operands: PROJECT_BACKWARD },
        Op {
            name: "project_backward of prompt rows",
            run: |m| project_backward(m, Scope::Prompt),
            operands: PROJECT_BACKWARD,
        },
        Op {
            name: "add_project",
            run: |m| {
                let (batch, side, rows) = (m.batch, Side::Decoder, m.decoder());
                let y = &m.rows("y", rows, TOTAL, Format::Operand)?;
                let x = &m.rows("x", rows, WIDTH, Format::Residual)?;
                let weight = &m.weight("W", WIDTH, TOTAL, Readers::Few)?;
                let mut next = m.residual("x_next", rows, WIDTH)?;
                let of = ResidualProjection { batch, side, y, weight, mask: m.mask, epsilon: EPSILON, x };
                m.device.add_project(of, &mut next)
            },
            operands: const {
                &[own("y"), own("x"), decides("W", "x", "y"), own("x_next"), own("the norm of x_next")]
            },
        },
        Op {
            name: "add_project_backward",
            run: |m| {
                let (batch, side, rows) = (m.batch, Side::Encoder, m.encoder());
                let d_x = &m.rows("d_x", rows, WIDTH, Format::Residual)?;
                let weight = &m.weight("W", WIDTH, TOTAL, Readers::Many)?;
                let y = Some((&m.rows("y", rows, TOTAL, Format::Operand)?, HEADS));
                let mut d_y = m.rows("d_y", rows, TOTAL, Format::Operand)?;
                let of = ResidualProjectionBackward { batch, side, d_x, weight, mask: m.mask, y };
                m.device.add_project_backward(of, &mut d_y)
            },
            operands: const { &[own("d_x"), decides("W", "d_x", "y"), own("y"), own("d_y")] },
        },
        Op {
            name: "feed_forward",
            run: |m| {
                let (w_in, w_out) = (w_in(m)?, w_out(m)?);
                let input = m.residual("x", m.encoder(), WIDTH)?;
                let mut next = m.residual("x_next", m.encoder(), WIDTH)?;
                m.device.feed_forward(&feed_forward(m, &w_in, &w_out), &input, &mut next, true).map(drop)
            },
            operands: const {
                &[
                    own("x"),
                    own("the norm of x"),
                    own("w_in"),
                    decides("w_out", "w_in", "w_in"),
                    own("x_next"),
                    own("the norm of x_next"),
                ]
            },
        },
        Op {
            name: "feed_forward_backward",
            run: |m| {
                let fitting = &m.fitting();
                let weights = (w_in(fitting)?, w_out(fitting)?);
                let (x, mut next) = (
                    fitting.residual("x", m.encoder(), WIDTH)?,
                    fitting.residual("x_next", m.encoder(), WIDTH)?,
                );
                let of = feed_forward(m, &weights.0, &weights.1);
                let saved = &m.device.feed_forward(&of, &x, &mut next, true)?.expect("kept");

                let (w_in, w_out) = (w_in(m)?, w_out(m)?);
                let input = &m.residual("x", m.encoder(), WIDTH)?;
                let x_next = &m.rows("x_next", m.encoder(), WIDTH, Format::Residual)?;
                let mut d_x = m.rows("d_x", m.encoder(), WIDTH, Format::Residual)?;
                let from = FeedForwardBackward { saved, input, x_next };
                m.device.feed_forward_backward(&feed_forward(m, &w_in, &w_out), from, &mut d_x)
            },
            operands: const {
                &[
                    own("x"),
                    own("the norm of x"),
                    own("w_in"),
                    decides("w_out", "w_in", "w_in"),
                    own("x_next"),
                    own("d_x"),
                ]
            },
        },
    ];
    linear.into_iter().chain(attention()).chain(ends()).chain(trained()).collect()
}

const PROJECT_BACKWARD: &[Operand] =
    &[own("dz"), own("x"), own("the norm of x"), decides("W", "dz", "x"), own("below"), own("d_x")];

fn project_backward<B: Backend>(m: &Maker<'_, B>, scope: Scope) -> Result<()> {
    let (batch, side, rows) = (m.batch, Side::Encoder, m.encoder());
    let scoped = if scope == Scope::Prompt { batch.examples() * PROMPT } else { rows };
    let dz = &projection_gradient(m, scope, scoped)?;
    let input = &m.residual("x", rows, WIDTH)?;
    let weight = &m.weight("W", TOTAL, WIDTH, Readers::Many)?;
    let below = Some(&m.rows("below", rows, WIDTH, Format::Residual)?);
    let mut d_x = m.rows("d_x", rows, WIDTH, Format::Residual)?;
    m.device.project_backward(ProjectionBackward { batch, side, scope, dz, weight, input, below }, &mut d_x)
}

/// A projection's gradient, made by a self attention of one head: devices may add to it what a projection's backward reads.
fn projection_gradient<B: Backend>(m: &Maker<'_, B>, scope: Scope, scoped: usize) -> Result<B::Rows> {
    let mut dz = m.rows("dz", scoped, TOTAL, Format::ProjectionGradient)?;
    if m.other.is_some_and(|(other, _)| other == "dz") {
        return Ok(dz);
    }
    let (heads, rows) = (Heads { count: 1, width: TOTAL / 3 }, m.encoder());
    let bias = m.device.position_bias(vec![vec![0.0; 2 * MAX_DISTANCE + 1]], MAX_DISTANCE)?;
    let of = SelfAttention { batch: m.batch, side: Side::Encoder, heads, bias: &bias, mask: m.mask };
    let qkv = &m.device.rows(rows, TOTAL, Format::Operand)?;
    let mut o = m.device.rows(rows, heads.width, Format::Operand)?;
    let mut log_sum_exp = m.device.rows(rows, 1, Format::Float)?;
    m.device.self_attention(&of, qkv, &mut o, &mut log_sum_exp)?;
    let d_o = &m.device.rows(rows, heads.width, Format::Operand)?;
    let from = SelfAttentionBackward { scope, qkv, o: &o, log_sum_exp: &log_sum_exp, d_o };
    m.device.self_attention_backward(&of, from, &mut dz)?;
    Ok(dz)
}

fn w_in<B: Backend>(m: &Maker<'_, B>) -> Result<B::Weight> {
    m.weight("w_in", INNER, WIDTH, Readers::Many)
}

fn w_out<B: Backend>(m: &Maker<'_, B>) -> Result<B::Weight> {
    m.weight("w_out", WIDTH, INNER, Readers::Many)
}

fn feed_forward<'a, B: Backend>(
    m: &'a Maker<'_, B>,
    w_in: &'a B::Weight,
    w_out: &'a B::Weight,
) -> FeedForward<'a, B> {
    FeedForward {
        batch: m.batch,
        side: Side::Encoder,
        w_in,
        w_out,
        activation: Activation::Relu,
        inner_mask: m.mask,
        output_mask: m.mask,
        epsilon: EPSILON,
    }
}

const SELF_ATTENTION_BACKWARD: &[Operand] =
    &[count("the position bias"), own("qkv"), own("o"), own("log_sum_exp"), own("d_o"), own("d_qkv")];

/// Self attention, cross attention and decoding.
fn attention<B: Backend>() -> Vec<Op<B>> {
    vec![
        Op {
            name: "self_attention",
            run: |m| {
                let (of, rows) = (m.position_bias()?, m.encoder());
                let qkv = m.rows("qkv", rows, 3 * TOTAL, Format::Operand)?;
                let mut o = m.rows("o", rows, TOTAL, Format::Operand)?;
                let mut log_sum_exp = m.rows("log_sum_exp", rows, HEADS.count, Format::Float)?;
                let of = self_attention(m, &of, Side::Encoder);
                m.device.self_attention(&of, &qkv, &mut o, &mut log_sum_exp)
            },
            operands: const {
                &[
                    count("the position bias"),
                    count("a head's position bias"),
                    own("qkv"),
                    own("o"),
                    own("log_sum_exp"),
                ]
            },
        },
        Op {
            name: "self_attention_backward",
            run: |m| self_attention_backward(m, Side::Encoder, Scope::All),
            operands: SELF_ATTENTION_BACKWARD,
        },
        Op {
            name: "self_attention_backward of prompt rows",
            run: |m| self_attention_backward(m, Side::Encoder, Scope::Prompt),
            operands: SELF_ATTENTION_BACKWARD,
        },
        Op {
            name: "self_attention_backward of the decoder",
            run: |m| self_attention_backward(m, Side::Decoder, Scope::All),
            operands: SELF_ATTENTION_BACKWARD,
        },
        Op {
            name: "self_attention_project",
            run: |m| {
                let (of, rows) = (m.position_bias()?, m.decoder());
                let input = m.residual("x", rows, WIDTH)?;
                let weight = m.weight("w_qkv", 3 * TOTAL, WIDTH, Readers::Few)?;
                let mut qkv = m.rows("qkv", rows, 3 * TOTAL, Format::Operand)?;
                let mut o = m.rows("o", rows, TOTAL, Format::Operand)?;
                let mut log_sum_exp = m.rows("log_sum_exp", rows, HEADS.count, Format::Float)?;
                let of = self_attention(m, &of, Side::Decoder);
                let written = [&mut o, &mut log_sum_exp];
                m.device.self_attention_project(&of, &input, &weight, &mut qkv, written)
            },
            operands: const {
                &[
                    count("the position bias"),
                    own("x"),
                    own("the norm of x"),
                    decides("w_qkv", "w_qkv", "x"),
                    own("qkv"),
                    own("o"),
                    own("log_sum_exp"),
                ]
            },
        },
        Op {
            name: "self_attention_output_backward",
            run: |m| {
                let (bias, rows) = (m.position_bias()?, m.decoder());
                let qkv = &m.rows("qkv", rows, 3 * TOTAL, Format::Operand)?;
                let o = &m.rows("o", rows, TOTAL, Format::Operand)?;
                let log_sum_exp = &m.rows("log_sum_exp", rows, HEADS.count, Format::Float)?;
                let d_x = &m.rows("d_x", rows, WIDTH, Format::Residual)?;
                let weight = &m.weight("w_o", WIDTH, TOTAL, Readers::Few)?;
                let mut d_qkv = m.rows("d_qkv", rows, 3 * TOTAL, Format::ProjectionGradient)?;
                let (scope, mask) = (Scope::All, m.mask);
                let from = SelfAttentionOutputBackward { scope, qkv, o, log_sum_exp, d_x, weight, mask };
                let of = self_attention(m, &bias, Side::Decoder);
                m.device.self_attention_output_backward(&of, from, &mut d_qkv)
            },
            operands: const {
                &[
                    count("the position bias"),
                    own("qkv"),
                    own("o"),
                    own("log_sum_exp"),
                    own("d_x"),
                    decides("w_o", "d_x", "w_o"),
                    own("d_qkv"),
                ]
            },
        },
        Op {
            name: "cross_project",
            run: |m| {
                let weights = cross_weights(&m.fitting())?;
                let input = m.residual("x", m.decoder(), WIDTH)?;
                let weight = m.weight("W", TOTAL, WIDTH, Readers::Few)?;
                let mut q = m.rows("z", m.decoder(), TOTAL, Format::Operand)?;
                m.device.cross_project(&cross_attention(m, &weights), &input, &weight, &mut q)
            },
            operands: const { &[own("x"), own("the norm of x"), decides("W", "z", "x"), own("z")] },
        },
        Op {
            name: "cross_project_backward",
            run: |m| {
                let weights = cross_weights(&m.fitting())?;
                let d_x = m.rows("d_x", m.decoder(), WIDTH, Format::Residual)?;
                let weight = m.weight("W", WIDTH, TOTAL, Readers::Few)?;
                let mut d_o = m.rows("d_y", m.decoder(), TOTAL, Format::Operand)?;
                let of = cross_attention(m, &weights);
                m.device.cross_project_backward(&of, &d_x, &weight, None, &mut d_o)
            },
            operands: const { &[own("d_x"), decides("W", "d_x", "d_y"), own("d_y")] },
        },
        Op {
            name: "cross_attention",
            run: |m| {
                let weights = cross_weights(m)?;
                let q = m.rows("q", m.decoder(), TOTAL, Format::Operand)?;
                let h = m.rows("h", m.encoder(), WIDTH, Format::Operand)?;
                let mut o = m.rows("o", m.decoder(), TOTAL, Format::Operand)?;
                m.device.cross_attention(&cross_attention(m, &weights), &q, &h, &mut o, true).map(drop)
            },
            operands: const { &[decides("w_k", "w_k", "w_v"), own("w_v"), own("q"), own("h"), own("o")] },
        },
        Op {
            name: "cross_attention_backward",
            run: |m| {
                let fitting = &m.fitting();
                let weights = cross_weights(fitting)?;
                let q = fitting.rows("q", m.decoder(), TOTAL, Format::Operand)?;
                let h = fitting.rows("h", m.encoder(), WIDTH, Format::Operand)?;
                let mut o = fitting.rows("o", m.decoder(), TOTAL, Format::Operand)?;
                let of = cross_attention(m, &weights);
                let saved = &m.device.cross_attention(&of, &q, &h, &mut o, true)?.expect("kept");

                let weights = cross_weights(m)?;
                let q = &m.rows("q", m.decoder(), TOTAL, Format::Operand)?;
                let h = &m.rows("h", m.encoder(), WIDTH, Format::Operand)?;
                let o = &m.rows("o", m.decoder(), TOTAL, Format::Operand)?;
                let d_o = &m.rows("d_o", m.decoder(), TOTAL, Format::Operand)?;
                let mut d_q = m.rows("d_q", m.decoder(), TOTAL, Format::ProjectionGradient)?;
                let mut d_h = source_gradient(m)?;
                let from = CrossAttentionBackward { saved, q, h, o, d_o };
                let of = cross_attention(m, &weights);
                m.device.cross_attention_backward(&of, from, Some(&mut d_q), &mut d_h)
            },
            operands: const {
                &[
                    decides("w_k", "w_k", "w_v"),
                    own("w_v"),
                    own("q"),
                    own("h"),
                    own("o"),
                    own("d_o"),
                    own("d_q"),
                    own("d_h"),
                ]
            },
        },
        Op {
            name: "source_rows",
            run: |m| m.device.source_rows(m.batch, source_gradient(m)?).map(drop),
            operands: const { &[count("d_h")] },
        },
        Op {
            name: "decode_self_attention",
            run: |m| {
                let (bias, examples) = (m.position_bias()?, m.batch.examples());
                let mut cache = m.device.cache(2, examples, 4, HEADS)?;
                let qkv = m.rows("qkv", examples, 3 * TOTAL, Format::Operand)?;
                let mut o = m.rows("o", examples, TOTAL, Format::Operand)?;
                // Of the last layer at the first token; any more is a layer or a token too many.
                let [layer, position] = m.shape("a decoding step", [1, 0]);
                let position = 4 * position;
                for layer in 0..layer.min(1) {
                    let step = DecodeStep { layer, position: 0, heads: HEADS, bias: &bias };
                    m.device.decode_self_attention(&step, &qkv, &mut cache, &mut o)?;
                }
                let step = DecodeStep { layer, position, heads: HEADS, bias: &bias };
                m.device.decode_self_attention(&step, &qkv, &mut cache, &mut o)
            },
            operands: const { &[count("the position bias"), own("qkv"), own("o"), own("a decoding step")] },
        },
        Op {
            name: "choose_tokens",
            run: |m| {
                let [examples, step] = m.shape("the tokens of a step", [m.decoder(), 0]);
                choose_tokens(m, &mut m.device.tokens(examples, 1)?, step)
            },
            operands: const {
                &[
                    table("the head", "the mean of the head's rows"),
                    own("the mean of the head's rows"),
                    own("hidden"),
                    own("the tokens of a step"),
                ]
            },
        },
        Op {
            name: "embed_tokens",
            run: |m| {
                let (batch, table) = (m.batch, &m.table()?);
                let mut output = m.residual("x", m.decoder(), WIDTH)?;
                let of = Embedding { table, batch, side: Side::Decoder, mask: m.mask, epsilon: EPSILON };
                let [examples, step] = m.shape("the tokens of a step", [m.decoder(), 0]);
                let mut tokens = m.device.tokens(examples, 1)?;
                if examples == m.decoder() {
                    choose_tokens(&m.fitting(), &mut tokens, 0)?;
                }
                m.device.embed_tokens(of, &tokens, step, &mut output)
            },
            operands: const {
                &[
                    table("the embedding table", "x"),
                    own("x"),
                    own("the norm of x"),
                    own("the tokens of a step"),
                ]
            },
        },
    ]
}

fn self_attention<'a, B: Backend>(
    m: &'a Maker<'_, B>,
    bias: &'a B::PositionBias,
    side: Side,
) -> SelfAttention<'a, B> {
    SelfAttention { batch: m.batch, side, heads: HEADS, bias, mask: m.mask }
}

fn self_attention_backward<B: Backend>(m: &Maker<'_, B>, side: Side, scope: Scope) -> Result<()> {
    let (bias, rows) = (m.position_bias()?, m.batch.rows(side));
    let qkv = &m.rows("qkv", rows, 3 * TOTAL, Format::Operand)?;
    let o = &m.rows("o", rows, TOTAL, Format::Operand)?;
    let log_sum_exp = &m.rows("log_sum_exp", rows, HEADS.count, Format::Float)?;
    let d_o = &m.rows("d_o", rows, TOTAL, Format::Operand)?;
    let scoped = if scope == Scope::Prompt { m.batch.examples() * PROMPT } else { rows };
    let mut d_qkv = m.rows("d_qkv", scoped, 3 * TOTAL, Format::ProjectionGradient)?;
    let from = SelfAttentionBackward { scope, qkv, o, log_sum_exp, d_o };
    m.device.self_attention_backward(&self_attention(m, &bias, side), from, &mut d_qkv)
}

fn choose_tokens<B: Backend>(m: &Maker<'_, B>, tokens: &mut B::Tokens, step: usize) -> Result<()> {
    let (weight, mean) = lm_head(m)?;
    let hidden = m.rows("hidden", m.decoder(), WIDTH, Format::Operand)?;
    m.device.choose_tokens(m.batch, &hidden, &LmHead { weight: &weight, mean: &mean }, tokens, step)
}

fn cross_weights<B: Backend>(m: &Maker<'_, B>) -> Result<[B::Weight; 2]> {
    Ok([m.weight("w_k", TOTAL, WIDTH, Readers::Few)?, m.weight("w_v", TOTAL, WIDTH, Readers::Few)?])
}

fn cross_attention<'a, B: Backend>(
    m: &'a Maker<'_, B>,
    [w_k, w_v]: &'a [B::Weight; 2],
) -> CrossAttention<'a, B> {
    CrossAttention { batch: m.batch, heads: HEADS, w_k, w_v, mask: m.mask }
}

/// Of a batch with longer examples, where it is to have more rows.
fn source_gradient<B: Backend>(m: &Maker<'_, B>) -> Result<B::SourceGradient> {
    let [longer_by, width] = m.shape("d_h", [0, WIDTH]);
    m.device.source_gradient(&batch(longer_by), width)
}

/// Embedding, final norm, head and loss.
fn ends<B: Backend>() -> Vec<Op<B>> {
    vec![
        Op {
            name: "embed",
            run: |m| {
                let (batch, table) = (m.batch, &m.table()?);
                let mut output = m.residual("x", m.decoder(), WIDTH)?;
                let of = Embedding { table, batch, side: Side::Decoder, mask: m.mask, epsilon: EPSILON };
                m.device.embed(of, &mut output)
            },
            operands: const { &[table("the embedding table", "x"), own("x"), own("the norm of x")] },
        },
        Op {
            name: "embed_backward",
            run: |m| {
                let mut d_x = m.rows("d_x", m.encoder(), WIDTH, Format::Residual)?;
                m.device.embed_backward(m.batch, m.mask, &mut d_x)
            },
            operands: const { &[count("d_x")] },
        },
        Op {
            name: "final_norm",
            run: |m| {
                let input = m.residual("x", m.decoder(), WIDTH)?;
                let norm_weight = m.weight("the norm's weight", 1, WIDTH, Readers::Lookup)?;
                let mut h = m.rows("h", m.decoder(), WIDTH, Format::Operand)?;
                m.device.final_norm(final_norm(m, &input, &norm_weight), &mut h)
            },
            operands: const {
                &[
                    decides("x", "x", "the norm's weight"),
                    own("the norm of x"),
                    own("the norm's weight"),
                    own("h"),
                ]
            },
        },
        Op {
            name: "final_norm_backward",
            run: |m| {
                let input = m.residual("x", m.decoder(), WIDTH)?;
                let norm_weight = m.weight("the norm's weight", 1, WIDTH, Readers::Lookup)?;
                let d_h = &m.rows("d_h", m.decoder(), WIDTH, Format::Float)?;
                let below = Some(&m.rows("below", m.decoder(), WIDTH, Format::Residual)?);
                let mut d_x = m.rows("d_x", m.decoder(), WIDTH, Format::Residual)?;
                let from = FinalNormBackward { d_h, below };
                m.device.final_norm_backward(final_norm(m, &input, &norm_weight), from, &mut d_x)
            },
            operands: const {
                &[
                    decides("x", "x", "the norm's weight"),
                    own("the norm of x"),
                    own("the norm's weight"),
                    own("d_h"),
                    own("below"),
                    own("d_x"),
                ]
            },
        },
        Op {
            name: "loss",
            run: |m| {
                let (weight, mean) = lm_head(m)?;
                let hidden = m.rows("hidden", m.decoder(), WIDTH, Format::Operand)?;
                let mut d_hidden = m.rows("d_hidden", m.decoder(), WIDTH, Format::Float)?;
                let lm_head = LmHead { weight: &weight, mean: &mean };
                m.device.loss(m.batch, &hidden, &lm_head, Some(&mut d_hidden)).map(drop)
            },
            operands: const {
                &[
                    table("the head", "the mean of the head's rows"),
                    own("the mean of the head's rows"),
                    own("hidden"),
                    own("d_hidden"),
                ]
            },
        },
        Op {
            name: "logits",
            run: |m| {
                let (weight, _) = lm_head(m)?;
                let hidden = m.rows("hidden", m.decoder(), WIDTH, Format::Operand)?;
                m.device.logits(m.batch, &hidden, &weight).map(drop)
            },
            operands: const {
                &[own("hidden"), Operand { name: "the head", rows: None, columns: Some("hidden"), step: 1 }]
            },
        },
        Op {
            name: "weight",
            run: |m| {
                let values = vec![0.0; m.count("a weight", TOTAL * WIDTH)];
                m.device.weight(values, TOTAL, WIDTH, Readers::Many).map(drop)
            },
            operands: const { &[count("a weight")] },
        },
        Op {
            name: "weight_row",
            run: |m| {
                let weight = m.fitting().table()?;
                m.device.weight_row(&weight, m.count("a weight", WORDS - 1)).map(drop)
            },
            operands: const { &[count("a weight")] },
        },
    ]
}

fn final_norm<'a, B: Backend>(
    m: &'a Maker<'_, B>,
    input: &'a Residual<B>,
    norm_weight: &'a B::Weight,
) -> FinalNorm<'a, B> {
    let (batch, side) = (m.batch, Side::Decoder);
    FinalNorm { batch, side, input, norm_weight: Some(norm_weight), scale: 0.5, mask: m.mask }
}

fn lm_head<B: Backend>(m: &Maker<'_, B>) -> Result<(B::Weight, B::Weight)> {
    let weight = m.weight("the head", WORDS, WIDTH, Readers::Few)?;
    Ok((weight, m.weight("the mean of the head's rows", 1, WIDTH, Readers::Lookup)?))
}

/// The mixture, the trained state and what is told of a step.
fn trained<B: Backend>() -> Vec<Op<B>> {
    vec![
        Op {
            name: "mix",
            run: |m| {
                let (sources, table, state) = (m.sources()?, m.table()?, m.fitting().state()?);
                let mut x = m.residual("x", m.encoder(), WIDTH)?;
                let of = Mix { mixing: &mixing(), sources: Some(&sources), batch: m.batch };
                let output = PromptRows { input: &mut x, mask: m.mask, epsilon: EPSILON };
                m.device.mix(&of, &table, &state, output).map(drop)
            },
            operands: const {
                &[
                    own("the sources"),
                    table("the embedding table", "the embedding table"),
                    own("x"),
                    own("the norm of x"),
                ]
            },
        },
        Op {
            name: "mix_backward",
            run: |m| {
                let fitting = m.fitting();
                let (mixing, sources, mut state) = (mixing(), fitting.sources()?, fitting.state()?);
                let of = Mix { mixing: &mixing, sources: Some(&sources), batch: m.batch };
                let mut x = fitting.residual("x", m.encoder(), WIDTH)?;
                let output = PromptRows { input: &mut x, mask: None, epsilon: EPSILON };
                let saved = m.device.mix(&of, &fitting.table()?, &state, output)?;
                let sources = m.sources()?;
                let of = Mix { sources: Some(&sources), ..of };
                let d_x = m.rows("d_x", m.encoder(), WIDTH, Format::Residual)?;
                m.device.mix_backward(&of, &saved, &d_x, &mut state)
            },
            operands: const { &[own("the sources"), own("d_x")] },
        },
        Op {
            name: "sources",
            run: |m| {
                let values = vec![0.5; m.count("the sources", SOURCES * PROMPT * WIDTH)];
                m.device.sources(&values, SOURCES, PROMPT, WIDTH).map(drop)
            },
            operands: const { &[count("the sources")] },
        },
        Op { name: "state", run: |m| m.state().map(drop), operands: const { &[count("the state")] } },
        Op {
            name: "write_state",
            run: |m| {
                let mut state = m.fitting().state()?;
                let length = m.layout().len();
                let [values, first, second] = ["the state", "the first moments", "the second moments"]
                    .map(|name| vec![0.5; m.count(name, length)]);
                let updates = vec![1; m.count("the updates", 1)];
                m.device.write_state(&mut state, [&values, &first, &second], &updates)
            },
            operands: const {
                &[
                    count("the state"),
                    count("the first moments"),
                    count("the second moments"),
                    count("the updates"),
                ]
            },
        },
        Op {
            name: "write_gradient",
            run: |m| {
                let mut state = m.fitting().state()?;
                let values = vec![0.5; m.count("the gradient", m.layout().len())];
                m.device.write_gradient(&mut state, &values)
            },
            operands: const { &[count("the gradient")] },
        },
        Op {
            name: "write_tally",
            run: |m| {
                let mut state = m.fitting().state()?;
                let statistics = vec![StepStatistics { loss: 1.0, entropy: 1.0 }; m.count("the tallies", 1)];
                m.device.write_statistics(&mut state, &statistics)
            },
            operands: const { &[count("the tallies")] },
        },
        Op {
            name: "optimizer_step",
            run: |m| {
                let mut state = m.fitting().state()?;
                let steps = vec![OptimizerStep::new(0.1, 0.1); m.count("the optimizer's steps", 1)];
                m.device.optimizer_step(&mut state, &steps)
            },
            operands: const { &[count("the optimizer's steps")] },
        },
        Op {
            name: "tally",
            run: |m| {
                let fitting = m.fitting();
                let (mixing, sources, mut state) = (mixing(), fitting.sources()?, fitting.state()?);
                let of = Mix { mixing: &mixing, sources: Some(&sources), batch: m.batch };
                let mut x = fitting.residual("x", m.encoder(), WIDTH)?;
                let output = PromptRows { input: &mut x, mask: None, epsilon: EPSILON };
                let mix = m.device.mix(&of, &fitting.table()?, &state, output)?;
                // The loss of a batch with a longer target is another's.
                let (batch, (weight, mean)) = (batch(m.count("the loss", 0)), lm_head(&fitting)?);
                let hidden = fitting.rows("hidden", batch.rows(Side::Decoder), WIDTH, Format::Operand)?;
                let lm_head = LmHead { weight: &weight, mean: &mean };
                let loss = m.device.loss(&batch, &hidden, &lm_head, None)?;
                m.device.add_statistics(m.batch, &loss, &mix, &mut state)
            },
            operands: const { &[count("the loss")] },
        },
    ]
}
