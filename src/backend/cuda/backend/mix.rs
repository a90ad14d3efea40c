//! The mixture of prompts.

use super::{Buffer, Cuda, Rows, State, Weight};
use crate::backend::cuda::ops::mix::{
    FrozenSources, MixBackward, MixForward, Mixture, Saved, Scratch, check_source_count, pooled_keys,
};
use crate::backend::ops::check_sources;
use crate::backend::{Batch, Mix, MixOps, PromptRows, StateLayout};
use crate::error::{Error, Result};

/// Frozen source prompts \[S, M, D\] and their pooled keys \[S, D\], in f32.
#[derive(Debug)]
pub struct Sources {
    shape: [usize; 3],
    values: Buffer<f32>,
    keys: Buffer<f32>,
}

impl Sources {
    /// The sources' numbers as the device holds them: they never change.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn read(&self, cuda: &Cuda) -> Result<Vec<f32>> {
        cuda.download(&self.values, self.values.len())
    }

    fn frozen(&self) -> FrozenSources<'_> {
        FrozenSources { prompts: &self.values, keys: &self.keys }
    }
}

/// What the mixture's backward needs.
#[derive(Debug)]
pub struct MixSaved {
    saved: Saved<Buffer<f32>, Buffer<i32>>,
    examples: usize,
}

impl MixSaved {
    /// The mixture's weights, \[B, P\], or \[B, M, P\], or none.
    pub(super) fn weights(&self) -> &Buffer<f32> {
        self.saved.attention()
    }

    /// Fails unless it was saved of as many examples as the batch has.
    pub(super) fn check_examples(&self, batch: &Batch) -> Result<()> {
        if self.examples == batch.examples() {
            return Ok(());
        }
        let (expected, found) = (batch.examples().to_string(), self.examples.to_string());
        Err(Error::tensor("the examples of a mixture", expected, found, ""))
    }
}

impl Cuda {
    /// Counts the products of the scorer's matrices, `down_and_up` with each of the bottleneck's, and of the weights with the sources.
    fn count_mixture(
        &self,
        of: &Mix<'_, Self>,
        layout: &StateLayout,
        down_and_up: usize,
        with_sources: bool,
    ) {
        let (batch, width) = (of.batch.examples(), layout.width);
        let has = |name| usize::from(layout.segment(name).is_some());
        let scorer =
            down_and_up * has("w_down") * width * layout.bottleneck_dim + has("weight") * width * width;
        let together =
            with_sources && of.mixing.scorer.is_some() && of.mixing.attention_rows(layout.prompt_length) == 1;
        let sources = of.sources.filter(|_| together).map_or(0, |sources| sources.shape.iter().product());
        self.count(2 * batch * (scorer + sources));
    }

    fn mixture<'a>(&self, of: &Mix<'a, Self>, layout: &'a StateLayout, runs: usize) -> Result<Mixture<'a>> {
        let count = of.sources.map_or(0, |sources| sources.shape[0]);
        Mixture::new(self.described(of.batch)?, of.mixing, layout, count, runs)
    }
}

impl MixOps for Cuda {
    type Sources = Sources;
    type MixSaved = MixSaved;

    fn sources(&self, values: &[f32], count: usize, prompt_length: usize, width: usize) -> Result<Sources> {
        let shape = [count, prompt_length, width];
        check_sources(values.len(), shape)?;
        check_source_count(count)?;
        let keys = pooled_keys(values, prompt_length, width);
        let mut sources =
            Sources { shape, values: self.allocate(values.len())?, keys: self.allocate(keys.len())? };
        self.upload(values, &mut sources.values)?;
        self.upload(&keys, &mut sources.keys)?;
        Ok(sources)
    }

    fn mix(
        &self,
        of: &Mix<'_, Self>,
        table: &Weight,
        state: &State,
        output: PromptRows<'_, Self>,
    ) -> Result<MixSaved> {
        of.check(&state.layout, state.runs, of.sources.map(|sources| sources.shape), &output)?;
        of.check_table(table, state.layout.width)?;
        self.count_mixture(of, &state.layout, 2, true);
        let mixture = self.mixture(of, &state.layout, state.runs)?;
        let mut saved =
            Saved::new(&mixture.lengths(), |length| self.allocate(length), |length| self.allocate(length))?;
        let PromptRows { input, mask, epsilon } = output;
        input.r.epsilon = epsilon as f32;
        let (x, copy) = input.x.residual_mut()?;
        let operands = MixForward {
            table: table.float()?,
            sources: of.sources.map(Sources::frozen),
            values: &state.values,
            x,
            copy,
            partials: Some(input.r.float_mut()?),
            mask: self.mask(mask)?,
        };
        mixture.forward(self.kernels(), operands, &mut saved)?;
        Ok(MixSaved { saved, examples: of.batch.examples() })
    }

    fn mix_backward(
        &self,
        of: &Mix<'_, Self>,
        saved: &MixSaved,
        d_x: &Rows,
        state: &mut State,
    ) -> Result<()> {
        of.check_gradient(&state.layout, state.runs, of.sources.map(|sources| sources.shape), d_x)?;
        let State { layout, runs, values, gradient, .. } = state;
        self.count_mixture(of, layout, 3, false);
        let mixture = self.mixture(of, layout, *runs)?;
        let mut scratch = Scratch::new(&mixture.lengths(), |length| self.allocate(length))?;
        let operands =
            MixBackward { sources: of.sources.map(Sources::frozen), values, d_x: d_x.float()?, gradient };
        mixture.backward(self.kernels(), operands, &saved.saved, &mut scratch)
    }

    fn attention(&self, saved: &MixSaved) -> Result<Vec<f64>> {
        let weights = self.download(saved.weights(), saved.weights().len())?;
        Ok(weights.into_iter().map(f64::from).collect())
    }
}
