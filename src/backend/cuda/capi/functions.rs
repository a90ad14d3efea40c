//! The functions themselves; `kernels/capi.h` says what each does and what it asks of the caller.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{CudaSlice, DevicePtr};
use half::bf16;

use super::super::export::ABI;
use super::super::ops::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Columns, ColumnsMut, Delta,
    InputGradient,
};
use super::super::ops::linear::Epilogue;
use super::super::ops::loss::{CrossEntropy, CrossEntropyRows, HiddenGradient, LossScratch, Plan};
use super::super::ops::optimizer::{AdamW, StepOperands};
use super::super::ops::packing::LabelRows;
use super::super::runtime::error::driver;
use super::super::runtime::kernels::Kernels;
use super::super::runtime::operands::{Precision, ReadOperand, WriteOperand};
use super::handles::{
    AdamWHandle, Code, CrossEntropyHandle, Foreign, KernelsHandle, LinearHandle, LossMemory, SequencesHandle,
    boundary, destroy, give, held, host, last_error, length, null, stream,
};
use super::interface;
use crate::backend::{Heads, Objective, OptimizerStep, Side};
use crate::error::{Error, Result};

#[unsafe(no_mangle)]
extern "C" fn promptmix_abi() -> u32 {
    ABI
}

#[unsafe(no_mangle)]
extern "C" fn promptmix_last_error() -> *const c_char {
    last_error()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_kernels_create(
    abi: u32,
    on: *mut c_void,
    kernels: *mut *mut KernelsHandle,
) -> Code {
    boundary(|| give(kernels, || KernelsHandle::new(abi, stream(on))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_kernels_destroy(kernels: *mut KernelsHandle) {
    destroy(kernels);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_sequences_create(
    kernels: *mut KernelsHandle,
    cu_seqlens_q: *const i32,
    cu_seqlens_k: *const i32,
    batch: i32,
    sequences: *mut *mut SequencesHandle,
) -> Code {
    boundary(|| {
        let ends = length("batch", batch)? + 1;
        let queries = host("cu_seqlens_q", cu_seqlens_q, ends)?;
        let keys =
            if cu_seqlens_k.is_null() { None } else { Some(host("cu_seqlens_k", cu_seqlens_k, ends)?) };
        held("kernels", kernels)?
            .with(|kernels| give(sequences, || SequencesHandle::new(kernels, queries, keys)))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_sequences_destroy(sequences: *mut SequencesHandle) {
    destroy(sequences);
}

/// The format that a number of the header means.
fn precision(number: i32) -> Result<Precision> {
    match number {
        0 => Ok(Precision::Bf16),
        1 => Ok(Precision::F32),
        _ => Err(Error::setting("precision", "0 for bf16 or 1 for f32", number.to_string(), "")),
    }
}

/// The operands of an attention, in one format.
struct AttentionCall<'a, T> {
    kernels: &'a Kernels,
    of: Attention<'a>,
    strides: [usize; 2],
    rows: [usize; 2],
    places: &'a interface::Attention,
    numbers: std::marker::PhantomData<T>,
}

impl<'a, T> AttentionCall<'a, T>
where
    CudaSlice<T>: ReadOperand + WriteOperand,
{
    fn new(
        kernels: &'a Kernels,
        places: &'a interface::Attention,
        bias: Option<&'a dyn DevicePtr<f32>>,
    ) -> Result<Self> {
        let sequences = held("sequences", places.sequences.cast::<SequencesHandle>().cast_const())?;
        let (queries, keys) = match sequences {
            SequencesHandle::Same(same) => (same.rows(), same.rows()),
            SequencesHandle::Pairs(pairs) => {
                (pairs.described().rows(Side::Decoder), pairs.described().rows(Side::Encoder))
            }
        };
        let heads = Heads { count: length("heads", places.heads)?, width: length("width", places.width)? };
        if !(0..=1).contains(&places.causal) {
            return Err(Error::setting("causal", "0 or 1", places.causal.to_string(), ""));
        }
        let max_distance = length("max_distance", places.max_distance)?;
        let of = Attention {
            bias: bias.map(|bias| (bias, max_distance)),
            causal: places.causal == 1,
            softmax_scale: places.softmax_scale,
            ..Attention::new(queries, keys, heads)
        };
        let strides = [length("q_stride", places.q_stride)?, length("kv_stride", places.kv_stride)?];
        Ok(Self {
            kernels,
            of,
            strides,
            rows: [queries.count(), keys.count()],
            places,
            numbers: std::marker::PhantomData,
        })
    }

    fn total(&self) -> usize {
        self.of.heads.total()
    }

    /// Rows of q (0) or of k and v (1), a stride apart.
    fn strided(&self, what: &str, at: u64, side: usize) -> Result<Foreign<T>> {
        Foreign::new(self.kernels, what, at, self.rows[side].saturating_mul(self.strides[side]))
    }

    /// Query rows without gaps.
    fn dense(&self, what: &str, at: u64) -> Result<Foreign<T>> {
        Foreign::new(self.kernels, what, at, self.rows[0] * self.total())
    }

    /// A number each query row and head.
    fn a_head(&self, what: &str, at: u64) -> Result<Foreign<f32>> {
        Foreign::new(self.kernels, what, at, self.rows[0] * self.of.heads.count)
    }

    fn inputs(&self) -> Result<[Foreign<T>; 3]> {
        Ok([
            self.strided("q", self.places.q, 0)?,
            self.strided("k", self.places.k, 1)?,
            self.strided("v", self.places.v, 1)?,
        ])
    }

    fn input<'b>(&self, [q, k, v]: &'b [Foreign<T>; 3]) -> AttentionInput<'b> {
        let columns =
            |of: &'b Foreign<T>, side: usize| Columns { matrix: &**of, first: 0, stride: self.strides[side] };
        AttentionInput::Apart { q: columns(q, 0), k: columns(k, 1), v: columns(v, 1) }
    }

    fn forward(&self) -> Result<()> {
        let inputs = self.inputs()?;
        let mut o = self.dense("o", self.places.o)?;
        let mut log_sum_exp = self.a_head("log_sum_exp", self.places.log_sum_exp)?;
        self.of.forward(self.kernels, self.input(&inputs), &mut *o, &mut *log_sum_exp)
    }

    fn backward(&self, gradient: &interface::AttentionGradient) -> Result<()> {
        let inputs = self.inputs()?;
        let o = self.dense("o", self.places.o)?;
        let log_sum_exp = self.a_head("log_sum_exp", self.places.log_sum_exp)?;
        let d_o = self.dense("d_o", gradient.d_o)?;
        let mut delta = self.a_head("delta", gradient.delta)?;
        let mut d_q = self.strided("d_q", gradient.d_q, 0)?;
        let mut d_k = self.strided("d_k", gradient.d_k, 1)?;
        let mut d_v = self.strided("d_v", gradient.d_v, 1)?;
        let [of_q, of_kv] = self.strides;
        let from = AttentionBackward {
            input: self.input(&inputs),
            o: &*o,
            log_sum_exp: &*log_sum_exp,
            d_o: &*d_o,
            delta: Some(Delta::Scratch(&mut *delta)),
        };
        let of_input = InputGradient::Apart {
            d_q: Some(ColumnsMut { matrix: &mut *d_q, first: 0, stride: of_q }),
            d_k: ColumnsMut { matrix: &mut *d_k, first: 0, stride: of_kv },
            d_v: ColumnsMut { matrix: &mut *d_v, first: 0, stride: of_kv },
        };
        self.of.backward(self.kernels, from, AttentionGradient { of_input, inner: None })
    }
}

/// Runs a pass in the format that the caller asks for.
fn attend(
    kernels: *mut KernelsHandle,
    attention: *const interface::Attention,
    gradient: Option<&interface::AttentionGradient>,
) -> Result<()> {
    let places = held("attention", attention)?;
    held("kernels", kernels)?.with(|kernels| {
        let biases = || {
            let distance = length("max_distance", places.max_distance)?;
            Ok::<_, Error>(length("heads", places.heads)?.saturating_mul(2 * distance + 1))
        };
        let bias = match places.bias {
            0 => None,
            at => Some(Foreign::<f32>::new(kernels, "bias", at, biases()?)?),
        };
        let bias = bias.as_deref().map(|bias| bias as &dyn DevicePtr<f32>);
        match (precision(places.precision)?, gradient) {
            (Precision::Bf16, None) => AttentionCall::<bf16>::new(kernels, places, bias)?.forward(),
            (Precision::F32, None) => AttentionCall::<f32>::new(kernels, places, bias)?.forward(),
            (Precision::Bf16, Some(gradient)) => {
                AttentionCall::<bf16>::new(kernels, places, bias)?.backward(gradient)
            }
            (Precision::F32, Some(gradient)) => {
                AttentionCall::<f32>::new(kernels, places, bias)?.backward(gradient)
            }
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_attention_forward(
    kernels: *mut KernelsHandle,
    attention: *const interface::Attention,
) -> Code {
    boundary(|| attend(kernels, attention, None))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_attention_backward(
    kernels: *mut KernelsHandle,
    attention: *const interface::Attention,
    gradient: *const interface::AttentionGradient,
) -> Code {
    boundary(|| attend(kernels, attention, Some(held("gradient", gradient)?)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_linear_create(
    kernels: *mut KernelsHandle,
    rows: i64,
    out: i32,
    input: i32,
    linear: *mut *mut LinearHandle,
) -> Code {
    boundary(|| {
        let (rows, out, input) = (length("rows", rows)?, length("out", out)?, length("in", input)?);
        if i32::try_from(rows).is_err() {
            return Err(Error::setting("rows", "fewer than 2^31", rows.to_string(), ""));
        }
        held("kernels", kernels)?
            .with(|kernels| give(linear, || LinearHandle::new(kernels, rows, out, input)))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_linear_destroy(linear: *mut LinearHandle) {
    destroy(linear);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_linear_forward(
    kernels: *mut KernelsHandle,
    linear: *mut LinearHandle,
    a: u64,
    weight: u64,
    z: u64,
    z_precision: i32,
) -> Code {
    boundary(|| {
        let handle = held("linear", linear)?;
        let [rows, out, input] = handle.shape;
        held("kernels", kernels)?.with(|kernels| {
            let a = Foreign::<bf16>::new(kernels, "a", a, rows * input)?;
            let weight = Foreign::<bf16>::new(kernels, "weight", weight, out * input)?;
            handle.with(|linear| match precision(z_precision)? {
                Precision::Bf16 => {
                    let mut z = Foreign::<bf16>::new(kernels, "z", z, rows * out)?;
                    linear.forward(kernels, &*a, &*weight, Epilogue::Plain { z: &mut *z })
                }
                Precision::F32 => {
                    let mut z = Foreign::<f32>::new(kernels, "z", z, rows * out)?;
                    linear.forward(kernels, &*a, &*weight, Epilogue::Float { z: &mut *z })
                }
            })
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_linear_backward(
    kernels: *mut KernelsHandle,
    linear: *mut LinearHandle,
    d_z: u64,
    weight: u64,
    d_a: u64,
) -> Code {
    boundary(|| {
        let handle = held("linear", linear)?;
        let [rows, out, input] = handle.shape;
        held("kernels", kernels)?.with(|kernels| {
            let d_z = Foreign::<bf16>::new(kernels, "d_z", d_z, rows * out)?;
            let weight = Foreign::<bf16>::new(kernels, "weight", weight, out * input)?;
            let mut d_a = Foreign::<bf16>::new(kernels, "d_a", d_a, rows * input)?;
            handle.with(|linear| linear.backward(kernels, &*d_z, &*weight, Epilogue::Plain { z: &mut *d_a }))
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_cross_entropy_create(
    kernels: *mut KernelsHandle,
    labels: *const u32,
    weights: *const f32,
    rows: i32,
    vocabulary: i32,
    width: i32,
    cross_entropy: *mut *mut CrossEntropyHandle,
) -> Code {
    boundary(|| {
        let shape @ [rows, vocabulary, width] =
            [length("rows", rows)?, length("vocabulary", vocabulary)?, length("width", width)?];
        let labels = host("labels", labels, rows)?;
        let weights =
            if weights.is_null() { vec![1.0; rows] } else { host("weights", weights, rows)?.to_vec() };
        if let Some(label) = labels.iter().find(|label| **label as usize >= vocabulary) {
            let expected = format!("words below {vocabulary}");
            return Err(Error::setting("labels", expected, label.to_string(), ""));
        }
        held("kernels", kernels)?.with(|kernels| {
            give(cross_entropy, || {
                let plan = Plan::new(kernels, Precision::Bf16, rows, [vocabulary, width])?;
                let (scratch, floats) = (plan.scratch(), |numbers| floats(kernels, numbers));
                let memory = LossMemory {
                    partials: floats(scratch.partials)?,
                    label_logits: floats(scratch.label_logits)?,
                    likelihood: floats(rows)?,
                    weighted: None,
                };
                let labels = LabelRows::new(kernels.stream(), labels, &weights)?;
                Ok(CrossEntropyHandle { labels, plan, shape, scratch: Mutex::new(memory) })
            })
        })
    })
}

/// Room for so many numbers.
fn floats(kernels: &Kernels, numbers: usize) -> Result<CudaSlice<f32>> {
    kernels.stream().alloc_zeros(numbers).map_err(|error| driver("make room for a loss", error))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_cross_entropy_destroy(cross_entropy: *mut CrossEntropyHandle) {
    destroy(cross_entropy);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_cross_entropy_launch(
    kernels: *mut KernelsHandle,
    cross_entropy: *mut CrossEntropyHandle,
    hidden: u64,
    lm_head: u64,
    loss: u64,
    greedy: u64,
    d_hidden: u64,
) -> Code {
    boundary(|| {
        let handle = held("cross_entropy", cross_entropy)?;
        let [rows, vocabulary, width] = handle.shape;
        held("kernels", kernels)?.with(|kernels| {
            let hidden = Foreign::<bf16>::new(kernels, "hidden", hidden, rows * width)?;
            let lm_head = Foreign::<bf16>::new(kernels, "lm_head", lm_head, vocabulary * width)?;
            let mut loss = Foreign::<f32>::new(kernels, "loss", loss, rows)?;
            let mut greedy = Foreign::<u32>::new(kernels, "greedy", greedy, rows)?;
            let mut d_hidden = match d_hidden {
                0 => None,
                at => Some(Foreign::<f32>::new(kernels, "d_hidden", at, rows * width)?),
            };
            let mut memory = handle.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            let LossMemory { partials, label_logits, likelihood, weighted } = &mut *memory;
            if d_hidden.is_some() && weighted.is_none() {
                *weighted = Some(floats(kernels, handle.plan.scratch().weighted)?);
            }
            let gradient = match (&mut d_hidden, weighted) {
                (Some(d_hidden), Some(weighted)) => {
                    Some(HiddenGradient { d_hidden: &mut **d_hidden, weighted })
                }
                _ => None,
            };
            let of = CrossEntropy {
                labels: handle.labels.rows(),
                plan: handle.plan,
                lm_head: &*lm_head,
                objective: Objective::default(),
                mean: None,
            };
            of.launch(
                kernels,
                &*hidden,
                LossScratch { partials, label_logits },
                CrossEntropyRows {
                    negative_log_likelihood: likelihood,
                    loss: &mut *loss,
                    greedy: &mut *greedy,
                },
                gradient,
            )
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_adamw_create(
    kernels: *mut KernelsHandle,
    numbers: i64,
    adamw: *mut *mut AdamWHandle,
) -> Code {
    boundary(|| {
        let length = length("length", numbers)?;
        held("kernels", kernels)?.with(|kernels| {
            give(adamw, || Ok(AdamWHandle { of: Mutex::new(AdamW::vector(kernels, length)?), length }))
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_adamw_destroy(adamw: *mut AdamWHandle) {
    destroy(adamw);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_adamw_schedule(
    kernels: *mut KernelsHandle,
    adamw: *mut AdamWHandle,
    settings: *const interface::AdamWSettings,
) -> Code {
    boundary(|| {
        let (handle, settings) = (held("adamw", adamw)?, held("settings", settings)?);
        let step = OptimizerStep {
            weight_decay: settings.weight_decay,
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            max_grad_norm: settings.max_grad_norm,
            ..OptimizerStep::new(settings.learning_rate, 0.0)
        };
        held("kernels", kernels)?.with(|kernels| {
            handle.of.lock().unwrap_or_else(PoisonError::into_inner).schedule(kernels, &[step])
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_adamw_step(
    kernels: *mut KernelsHandle,
    adamw: *mut AdamWHandle,
    values: u64,
    gradient: u64,
    first_moment: u64,
    second_moment: u64,
) -> Code {
    boundary(|| {
        let handle = held("adamw", adamw)?;
        held("kernels", kernels)?.with(|kernels| {
            let floats = |what: &str, at: u64| Foreign::<f32>::new(kernels, what, at, handle.length);
            let (mut values, gradient) = (floats("values", values)?, floats("gradient", gradient)?);
            let mut first = floats("first_moment", first_moment)?;
            let mut second = floats("second_moment", second_moment)?;
            handle.of.lock().unwrap_or_else(PoisonError::into_inner).step(
                kernels,
                StepOperands {
                    values: &mut *values,
                    gradient: &*gradient,
                    first_moment: &mut *first,
                    second_moment: &mut *second,
                },
            )
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn promptmix_adamw_reports(
    kernels: *mut KernelsHandle,
    adamw: *mut AdamWHandle,
    reports: *mut interface::AdamWReport,
    room: i32,
    count: *mut i32,
) -> Code {
    boundary(|| {
        let (handle, room) = (held("adamw", adamw)?, length("room", room)?);
        if count.is_null() || reports.is_null() {
            return Err(null("reports and count"));
        }
        // Reports that were read are gone, so there must be room for all that there can be.
        if room < 64 {
            return Err(Error::setting("room", "at least 64 reports", room.to_string(), ""));
        }
        held("kernels", kernels)?.with(|kernels| {
            let found = handle.of.lock().unwrap_or_else(PoisonError::into_inner).reports(kernels)?;
            let steps = found.iter().filter_map(|step| step.first()).take(room);
            let mut written = 0;
            for (place, step) in steps.enumerate() {
                let report = interface::AdamWReport {
                    gradient_norm: step.gradient_norm,
                    applied: i32::from(step.applied),
                    padding: 0,
                };
                // SAFETY: by contract there is room for `room` reports, and there are no more.
                unsafe { reports.add(place).write(report) };
                written += 1;
            }
            // SAFETY: by contract it points to a number.
            unsafe { count.write(written) };
            Ok(())
        })
    })
}
