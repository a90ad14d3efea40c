//! The final norm of a stack.

use super::{Cuda, Rows, read, write};
use crate::backend::cuda::ops::norm as launch;
use crate::backend::{FinalNorm, FinalNormBackward, NormOps};
use crate::error::Result;

impl Cuda {
    fn final_norm_of<'a>(&self, of: &FinalNorm<'a, Self>) -> Result<launch::FinalNorm<'a>> {
        let norm_weight = match of.norm_weight {
            Some(norm_weight) => Some(read(norm_weight.float()?)),
            None => None,
        };
        Ok(launch::FinalNorm {
            rows: self.described(of.batch)?.rows(of.side),
            width: of.input.width(),
            epsilon: of.input.r.epsilon,
            norm_weight,
            scale: of.scale as f32,
            mask: self.mask(of.mask)?,
        })
    }
}

fn normed<'a>(of: &FinalNorm<'a, Cuda>) -> Result<launch::NormedRows<'a>> {
    Ok(launch::NormedRows { x: of.input.x.float()?, partials: of.input.r.float()? })
}

impl NormOps for Cuda {
    fn final_norm(&self, of: FinalNorm<'_, Self>, h: &mut Rows) -> Result<()> {
        of.check(h)?;
        self.final_norm_of(&of)?.forward(self.kernels(), normed(&of)?, h.operand_mut()?)
    }

    fn final_norm_backward(
        &self,
        of: FinalNorm<'_, Self>,
        from: FinalNormBackward<'_, Self>,
        d_x: &mut Rows,
    ) -> Result<()> {
        of.check_backward(&from, d_x)?;
        let norm = self.final_norm_of(&of)?;
        let mut inner = match from.below {
            Some(_) => Some(self.allocate(norm.rows.count())?),
            None => None,
        };
        d_x.inner = None;
        let (float, copy) = d_x.residual_mut()?;
        let written = launch::FinalNormGradient {
            d_x: float,
            copy,
            inner: match (from.below, &mut inner) {
                (Some(below), Some(inner)) => Some((below.operand()?, write(inner))),
                _ => None,
            },
        };
        norm.backward(self.kernels(), normed(&of)?, from.d_h.float()?, written)?;
        d_x.inner = inner;
        Ok(())
    }
}
