//! Our numbers against PyTorch's, for a fixture folder: trust in a build, on the machine that it will run on.

mod compare;
mod fixture;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

pub use compare::{Comparison, Tolerance, compare};
pub use fixture::{Attempt, Expected, Fixture};

use crate::backend::{Backend, Batch, Mixing, OptimizerStep, Scorer, Side, StateLayout};
use crate::error::Result;
use crate::model::{Mixture, Pass, T5, position};
use crate::pretrained::Checkpoint;

/// What depends on the number format of matrix operands.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    loss: Tolerance,
    gradient: Tolerance,
    activation: Tolerance,
    attention: Tolerance,
    /// Whether greedy decoding must say the same: near ties may fall otherwise in bf16.
    greedy: bool,
}

impl Bounds {
    fn of(operand_rounding: f64) -> Self {
        if operand_rounding < 1e-6 {
            // f32, sums of up to a few thousand terms: rounding adds up to some tens of units in the last place (6e-8).
            // The softmax of a few scores is off by a few units in the last place of 1.
            return Self {
                loss: Tolerance::OfLargest(1e-5),
                gradient: Tolerance::OfLargest(2e-5),
                activation: Tolerance::OfLargest(2e-5),
                attention: Tolerance::Absolute(1e-6),
                greedy: true,
            };
        }
        // bf16 rounds every operand by up to 2^-9. What a fixture measured of PyTorch's own bf16 stands in for `gradient`,
        // which is for fixtures without it. The mixture is f32, but for a sum of other order.
        Self {
            loss: Tolerance::OfLargest(2e-3),
            gradient: Tolerance::Cosine(1.5e-3),
            activation: Tolerance::Cosine(1e-3),
            attention: Tolerance::Absolute(1e-5),
            greedy: false,
        }
    }
}

/// One elementwise update of numbers below 10 from given gradients.
const OPTIMIZER: Tolerance = Tolerance::OfLargest(1e-6);
/// The same numbers, looked up.
const LOOKUP: Tolerance = Tolerance::Absolute(0.0);
/// A sum of two products in another order.
const INPUT: Tolerance = Tolerance::OfLargest(1e-6);

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was compared, by the fixture's name for it.
    pub name: String,
    /// How it came out; `None` for what is listed but not compared.
    pub outcome: Option<(Comparison, Tolerance)>,
    /// Why it was not compared, or what else there is to say.
    pub note: &'static str,
}

impl Check {
    /// Whether the check holds; what is only listed does.
    pub fn passed(&self) -> bool {
        self.outcome.as_ref().is_none_or(|(comparison, tolerance)| comparison.passes(*tolerance))
    }
}

/// All checks of one fixture.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the model's files leave open.
    pub warnings: Vec<String>,
    /// In the fixture's order of names.
    pub checks: Vec<Check>,
    /// Tensors of the fixture that were neither compared nor listed.
    pub forgotten: Vec<String>,
}

impl Report {
    /// Whether every check holds and no tensor was forgotten.
    pub fn passed(&self) -> bool {
        self.forgotten.is_empty() && !self.checks.is_empty() && self.checks.iter().all(Check::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = ["absolute", "relative", "1 - cosine"];
        writeln!(
            formatter,
            "{:<22} {:>12} {:>12} {:>12}  {:<22} of it",
            "tensor", columns[0], columns[1], columns[2], "tolerance"
        )?;
        for check in &self.checks {
            match &check.outcome {
                Some((comparison, tolerance)) => {
                    let verdict = if check.passed() { "pass" } else { "FAIL" };
                    write!(
                        formatter,
                        "{:<22} {:>12.2e} {:>12.2e} {:>12.2e}  {tolerance:<22} {:>5.2} {verdict}",
                        check.name,
                        comparison.worst_absolute,
                        comparison.worst_relative,
                        comparison.cosine_distance,
                        comparison.ratio(*tolerance)
                    )?;
                    match &comparison.defect {
                        Some(defect) => writeln!(formatter, "  {defect}")?,
                        None => writeln!(formatter, "  {}", check.note)?,
                    }
                }
                None => {
                    writeln!(
                        formatter,
                        "{:<22} {:>12} {:>12} {:>12}  {}",
                        check.name, "-", "-", "-", check.note
                    )?;
                }
            }
        }
        for name in &self.forgotten {
            writeln!(formatter, "{name:<22} neither compared nor listed: FAIL")?;
        }
        Ok(())
    }
}

/// The fixture's names of the trained tensors, and ours.
const TRAINED: [(&str, &str); 5] = [
    ("p_target", "target_prompts"),
    ("w_down", "w_down"),
    ("w_up", "w_up"),
    ("ln_g", "norm_weight"),
    ("ln_b", "norm_bias"),
];

/// The fixture's name of the encoder's input, whose prompt rows have a gradient.
const INPUT_GRADIENT: &str = "enc_in";

/// Where a fixture has the most that 1 - cosine of this gradient was in several draws of PyTorch's bf16.
fn measured(name: &str) -> String {
    format!("bf16_distance.{name}")
}

/// Tensors that are inputs, or live only inside a fused op.
const LISTED: [(&str, &str); 14] = [
    ("in.ids", "input"),
    ("in.mask", "input: padding is left out"),
    ("in.labels", "input"),
    ("sources", "input"),
    ("out.enc_mask", "no padding row exists"),
    ("out.x_hat", "inside the mixture: its effect is in out.attn"),
    ("out.p_hat", "inside the mixture: its effect is in out.attn"),
    ("out.h", "inside the mixture: its effect is in out.attn"),
    ("out.scores", "inside the mixture: its softmax is out.attn"),
    ("grad.sources", "not computed: the sources are frozen"),
    ("param.p_target", "input"),
    ("param.w_down", "input"),
    ("param.w_up", "input"),
    ("param.ln_g", "input"),
];

/// Runs the fixture in `folder` on `backend`.
///
/// # Errors
/// If the folder cannot be read or does not fit together, or the device fails; a number that differs is not an error but a
/// failed check.
pub fn verify<B: Backend>(backend: &B, folder: &Path) -> Result<Report> {
    let fixture = Fixture::open(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let model = T5::load(backend, &checkpoint)?;
    let bounds = Bounds::of(backend.operand_rounding());
    let mut run = Run { fixture: &fixture, bounds, checks: Vec::new() };
    run.position_bias(&checkpoint)?;
    run.model(backend, &model)?;
    for (name, note) in LISTED {
        run.list(name, note);
    }
    run.list("param.ln_b", "input");
    for name in TRAINED.map(|(name, _)| name).into_iter().chain([INPUT_GRADIENT]) {
        run.list(&measured(name), "how far bf16 in PyTorch is from f64: the bar for bf16");
    }
    let mut checks = run.checks;
    checks.sort_by(|a, b| a.name.cmp(&b.name));
    let seen: BTreeSet<&str> = checks.iter().map(|check| check.name.as_str()).collect();
    let forgotten = fixture.names().filter(|name| !seen.contains(name)).map(str::to_owned).collect();
    Ok(Report { warnings: checkpoint.warnings().to_vec(), checks, forgotten })
}

struct Run<'a> {
    fixture: &'a Fixture,
    bounds: Bounds,
    checks: Vec<Check>,
}

impl Run<'_> {
    fn list(&mut self, name: &str, note: &'static str) {
        if self.fixture.names().any(|tensor| tensor == name) {
            self.checks.push(Check { name: name.to_owned(), outcome: None, note });
        }
    }

    fn compare(
        &mut self,
        name: &str,
        actual: &[f64],
        expected: &[f64],
        tolerance: Tolerance,
        note: &'static str,
    ) {
        let outcome = Some((compare(actual, expected), tolerance));
        self.checks.push(Check { name: name.to_owned(), outcome, note });
    }

    fn position_bias(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let config = checkpoint.config();
        for (name, stack, bidirectional) in
            [("aux.enc_pos_bias", "encoder", true), ("aux.dec_pos_bias", "decoder", false)]
        {
            // A fixture of a large model leaves these out.
            if !self.fixture.names().any(|tensor| tensor == name) {
                continue;
            }
            let table = checkpoint.tensor(
                &format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
                &[config.relative_attention_num_buckets, config.num_heads],
            )?;
            let (rows, max_distance) = position::bias_rows(config, &table, bidirectional);
            let expected = self.fixture.tensor(name)?;
            let length = expected.shape.last().copied().unwrap_or(0) as isize;
            let mut actual = Vec::new();
            for row in &rows {
                for query in 0..length {
                    for key in 0..length {
                        let slot = (key - query).clamp(-(max_distance as isize), max_distance as isize)
                            + max_distance as isize;
                        actual.push(f64::from(row[slot as usize]));
                    }
                }
            }
            self.compare(name, &actual, &expected.values, LOOKUP, "from one row a head");
        }
        Ok(())
    }

    fn model<B: Backend>(&mut self, backend: &B, model: &T5<B>) -> Result<()> {
        let fixture = self.fixture;
        let (attempt, config) = (&fixture.attempt, model.config());
        let width = config.d_model;
        let examples = fixture.examples()?;
        let mut batch =
            Batch::pack(&examples, attempt.prompt_len, config.decoder_start_token_id, config.vocab_size)?;
        if !attempt.pool_mask {
            batch = batch.pooling_padding(fixture.padded_width()?, config.pad_token_id);
        }
        let mixing = Mixing {
            scorer: Some(Scorer::Bottleneck),
            temperature: attempt.temperature,
            without_target: false,
            layer_norm_epsilon: attempt.ln_eps,
        };
        let layout = StateLayout::new(&mixing, 1, attempt.prompt_len, width, attempt.rank, false);
        let sources: Vec<f32> = fixture.tensor("sources")?.values.iter().map(|&value| value as f32).collect();
        let sources = backend.sources(&sources, attempt.n_sources, attempt.prompt_len, width)?;
        let source_count = attempt.n_sources;
        let mixture = Mixture { mixing, sources: Some(sources), source_count, layout };
        let parameters = self.flat(&mixture.layout, "param")?;
        let mut state = backend.state(&mixture.layout, &parameters, 1)?;
        let label_tokens = [batch.label_tokens(0)];

        let mut input = Vec::new();
        let mut observe = |name: &str, rows: &B::Rows| {
            if name == "encoder input" {
                input = backend.read(rows)?;
            }
            Ok(())
        };
        let mut pass = Pass { observe: Some(&mut observe), ..Pass::evaluation() };
        let encoding = model.encode(backend, &mixture, &state, &batch, &mut pass)?;
        let decoding = model.decode(backend, &batch, &encoding, &mut pass)?;
        // As `predict` answers: from the rows, with the state that the fixture's tokens are of.
        let longest =
            fixture.tensor("out.greedy")?.shape.last().map_or(0, |&columns| columns.saturating_sub(1));
        let decoded = batch.decoded(config.decoder_start_token_id, longest)?;
        let graph_cache = &mut B::GraphCache::default();
        let said = model.answer(backend, &mixture, &state, graph_cache, &decoded, |_, _| Ok(()))?;
        let (step, d_input) =
            model.loss_and_gradient(backend, &mixture, &mut state, &batch, &label_tokens, None)?;

        let length = attempt.prompt_len;
        let padded = fixture.padded_width()? + length;
        let prompt_rows = |rows: &[f64]| self::prompt_rows(&batch, width, rows);
        let padded_labels = fixture.tensor("in.labels")?.shape.last().copied().unwrap_or(0);
        let real_encoder =
            real_rows(&batch, Side::Encoder, &fixture.tensor("out.enc_in")?.values, padded, width);
        self.compare("out.enc_in", &input, &real_encoder, INPUT, "real rows");
        let instance = &fixture.tensor("out.p_inst")?.values;
        self.compare("out.p_inst", &prompt_rows(&input), instance, INPUT, "");
        let decoder_ids: Vec<f64> = batch.decoder_ids().iter().map(|&id| f64::from(id)).collect();
        let shifted =
            real_rows(&batch, Side::Decoder, &fixture.tensor("in.decoder_ids")?.values, padded_labels, 1);
        self.compare("in.decoder_ids", &decoder_ids, &shifted, LOOKUP, "real rows");
        self.compare(
            "out.attn",
            &step.attention,
            &fixture.tensor("out.attn")?.values,
            self.bounds.attention,
            "",
        );
        let norm_weights: Vec<f64> =
            model.encoder_norm_weight().iter().map(|&norm_weight| f64::from(norm_weight)).collect();
        let output: Vec<f64> = backend
            .read(encoding.rows())?
            .chunks_exact(width)
            .flat_map(|row| {
                row.iter()
                    .zip(&norm_weights)
                    .map(|(value, norm_weight)| value * norm_weight)
                    .collect::<Vec<_>>()
            })
            .collect();
        let expected =
            real_rows(&batch, Side::Encoder, &fixture.tensor("out.enc_out")?.values, padded, width);
        self.compare(
            "out.enc_out",
            &output,
            &expected,
            self.bounds.activation,
            "real rows, times the weight of the final norm",
        );
        let logits = backend.read(&model.logits(backend, &batch, &decoding)?)?;
        let expected = &fixture.tensor("out.logits")?.values;
        let expected = real_rows(&batch, Side::Decoder, expected, padded_labels, config.vocab_size);
        self.compare("out.logits", &logits, &expected, self.bounds.activation, "rows with a label");
        self.compare("out.loss", &step.per_run, &fixture.tensor("out.loss")?.values, self.bounds.loss, "");

        let gradient = backend.read_gradient(&state)?;
        for (theirs, ours) in TRAINED {
            let name = format!("grad.{theirs}");
            let actual = mixture.layout.range(ours, 0).map(|range| &gradient[range]).unwrap_or_default();
            let bound = self.gradient_bound(theirs)?;
            self.compare(&name, actual, &fixture.tensor(&name)?.values, bound, "");
        }
        let d_input = d_input.map_or(Ok(Vec::new()), |rows| backend.read(&rows))?;
        let expected = &fixture.tensor("grad.enc_in")?.values;
        let expected: Vec<f64> = expected
            .chunks_exact(padded * width)
            .flat_map(|example| example[..length * width].to_vec())
            .collect();
        // Fixtures of before have none of its own: the target prompt's is the sum of its rows.
        let has_own = fixture.names().any(|tensor| tensor == measured(INPUT_GRADIENT));
        let bound = self.gradient_bound(if has_own { INPUT_GRADIENT } else { "p_target" })?;
        self.compare("grad.enc_in", &prompt_rows(&d_input), &expected, bound, "prompt rows");

        // The optimizer is fed the fixture's own gradient, so that its check does not depend on the others.
        backend.write_gradient(&mut state, &self.flat(&mixture.layout, "grad")?)?;
        let mut optimizer = OptimizerStep::new(0.3, 0.3);
        optimizer.weight_decay = 1e-5;
        backend.optimizer_step(&mut state, &[optimizer])?;
        let [updated, ..] = backend.read_state(&state)?;
        for (theirs, ours) in TRAINED {
            let name = format!("adamw.{theirs}");
            let actual = mixture.layout.range(ours, 0).map(|range| &updated[range]).unwrap_or_default();
            self.compare(&name, actual, &fixture.tensor(&name)?.values, OPTIMIZER, "");
        }

        let flat = |rows: Vec<Vec<u32>>| rows.concat().into_iter().map(f64::from).collect::<Vec<_>>();
        let said = flat(said);
        let expected = flat(fixture.greedy(config.eos_token_id)?);
        if self.bounds.greedy {
            self.compare("out.greedy", &said, &expected, LOOKUP, "token ids up to the end of sequence");
        } else {
            let agrees = said == expected;
            let note =
                if agrees { "the same tokens" } else { "other tokens: near ties fall otherwise in bf16" };
            self.list("out.greedy", note);
        }
        Ok(())
    }

    /// How far the gradient of the fixture's tensor `name` may lie off: as far as the farthest measured draw of PyTorch's own
    /// bf16, for bf16.
    fn gradient_bound(&self, name: &str) -> Result<Tolerance> {
        let measured = measured(name);
        if matches!(self.bounds.gradient, Tolerance::Cosine(_))
            && self.fixture.names().any(|tensor| tensor == measured)
            && let Some(&distance) = self.fixture.tensor(&measured)?.values.first()
        {
            return Ok(Tolerance::Cosine(distance));
        }
        Ok(self.bounds.gradient)
    }

    /// The fixture's tensors of one kind as a flat state.
    fn flat(&self, layout: &StateLayout, kind: &str) -> Result<Vec<f64>> {
        let mut values = vec![0.0; layout.len()];
        for (theirs, ours) in TRAINED {
            let tensor = self.fixture.tensor(&format!("{kind}.{theirs}"))?;
            if let Some(range) = layout.range(ours, 0) {
                if tensor.values.len() != range.len() {
                    return Err(crate::Error::tensor(
                        format!("{kind}.{theirs}"),
                        format!("{} values, by attempt.json and config.json", range.len()),
                        format!("shape {:?}", tensor.shape),
                        "make the fixture again",
                    ));
                }
                values[range].copy_from_slice(&tensor.values);
            }
        }
        Ok(values)
    }
}

/// The rows of a padded \[B, length, width\] tensor that exist in the batch.
fn real_rows(batch: &Batch, side: Side, padded: &[f64], length: usize, width: usize) -> Vec<f64> {
    let examples = padded.chunks_exact((length * width).max(1)).take(batch.examples());
    examples.enumerate().flat_map(|(b, rows)| rows[..batch.range(side, b).len() * width].to_vec()).collect()
}

fn prompt_rows(batch: &Batch, width: usize, rows: &[f64]) -> Vec<f64> {
    (0..batch.examples())
        .map(|b| batch.range(Side::Encoder, b).start)
        .filter(|start| rows.len() >= (start + batch.prompt_length()) * width)
        .flat_map(|start| rows[start * width..(start + batch.prompt_length()) * width].to_vec())
        .collect()
}
