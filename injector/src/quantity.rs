//! Kubernetes quantities, as far as the sidecar's resources need them: a decimal number with a suffix. The
//! exponent form (`1e3`) and signs, which nobody writes there, are refused.

/// An amount, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quantity {
    text: String,
    /// In billionths, so that every suffix is exact.
    nanos: u128,
}

impl Quantity {
    /// Reads an amount; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        /// So many digits leave room for the largest suffix.
        const MOST_DIGITS: usize = 17;
        const UNIT: u128 = 1_000_000_000;
        const KIBI: u128 = 1024;

        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return Err("it has more than one decimal point");
        }
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() {
            return Err("it should begin with a digit, as in 100m or 64Mi");
        }
        if digits.len() > MOST_DIGITS {
            return Err("it has too many digits");
        }
        let mantissa: u128 = digits.parse().map_err(|_| "it should begin with a digit, as in 100m or 64Mi")?;
        let multiplier = match suffix {
            "n" => 1,
            "u" => 1_000,
            "m" => 1_000_000,
            "" => UNIT,
            "k" => UNIT * 1_000,
            "M" => UNIT * 1_000_000,
            "G" => UNIT * 1_000_000_000,
            "T" => UNIT * 1_000_000_000_000,
            "Ki" => UNIT * KIBI,
            "Mi" => UNIT * KIBI.pow(2),
            "Gi" => UNIT * KIBI.pow(3),
            "Ti" => UNIT * KIBI.pow(4),
            _ => return Err("its suffix should be one of n, u, m, k, M, G, T, Ki, Mi, Gi and Ti"),
        };
        let scaled = mantissa.checked_mul(multiplier).ok_or("it is too large")?;
        // Not more than 17 digits of fraction, so that the power fits.
        let nanos = scaled / 10_u128.pow(fraction.len() as u32);
        Ok(Self { text: text.to_owned(), nanos })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub(crate) fn exceeds(&self, other: &Self) -> bool {
        self.nanos > other.nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nanos(text: &str) -> u128 {
        Quantity::parse(text).expect("a quantity").nanos
    }

    #[test]
    fn suffixes_scale() {
        assert_eq!(nanos("0.1"), nanos("100m"));
        assert_eq!(nanos(".5"), nanos("500m"));
        assert_eq!(nanos("2."), nanos("2"));
        assert_eq!(nanos("1Gi"), nanos("1024Mi"));
        assert_eq!(nanos("1.5k"), nanos("1500"));
        assert!(nanos("1Mi") > nanos("1M"));
        assert!(Quantity::parse("0m").expect("a quantity").is_zero());
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for bad in ["", ".", "m", "Mi", "-1", "+1", "1 Mi", "1mi", "1e3", "1.2.3", "lots", "10m,", "９", "1234567890123456789"] {
            assert!(Quantity::parse(bad).is_err(), "{bad} was accepted");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_kept(text in "\\PC{0,24}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                prop_assert_eq!(quantity.as_str(), text);
            }
        }

        #[test]
        fn every_number_fits_every_suffix(number in "[0-9]{1,8}(\\.[0-9]{0,9})?", suffix in "(n|u|m|k|M|G|T|Ki|Mi|Gi|Ti)?") {
            let text = format!("{number}{suffix}");
            prop_assert!(Quantity::parse(&text).is_ok());
        }
    }
}
