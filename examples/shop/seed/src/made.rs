//! The made data: people, goods, and what they do. Invariant: everything here follows from the seed alone.

use rand::Rng;
use rand::distr::Distribution;
use rand::distr::weighted::{Error, WeightedIndex};
use rand::seq::IndexedRandom;
use serde::Serialize;

/// How unequal popularity is: the n-th most popular has the weight 1 / n to this power.
const SKEW: f64 = 1.07;
/// One of so many steps changes a product, the others order one.
const CHANGE_EVERY: u32 = 50;
/// How many users are asked for in all three ways at the end.
const SAMPLE_MAX: usize = 25;

const FIRST_NAMES: [&str; 20] = [
    "Ada",
    "Alan",
    "Barbara",
    "Dennis",
    "Edsger",
    "Frances",
    "Grace",
    "Hedy",
    "Jean",
    "John",
    "Katherine",
    "Leslie",
    "Lynn",
    "Margaret",
    "Nancy",
    "Radia",
    "Shafi",
    "Tim",
    "Tony",
    "Zoë",
];
const LAST_NAMES: [&str; 20] = [
    "Allen",
    "Bartik",
    "Berners",
    "Conway",
    "Dijkstra",
    "Goldwasser",
    "Hamilton",
    "Hoare",
    "Hopper",
    "Johnson",
    "Lamarr",
    "Lamport",
    "Liskov",
    "Lovelace",
    "Lynch",
    "McCarthy",
    "Perlman",
    "Ritchie",
    "Turing",
    "Übermut",
];
const KINDS: [&str; 16] = [
    "Bicycle bell",
    "Bucket",
    "Compass",
    "Deck chair",
    "Fishing rod",
    "Kettle",
    "Kite",
    "Lantern",
    "Map of the coast",
    "Oilskin",
    "Rope",
    "Sand sieve",
    "Sea chest",
    "Spade",
    "Telescope",
    "Tide clock",
];
const QUALITIES: [&str; 12] = [
    "blue",
    "brass",
    "folding",
    "heavy",
    "little",
    "patched",
    "quiet",
    "red",
    "second-hand",
    "sturdy",
    "waterproof",
    "yellow",
];

/// A user to be.
#[derive(Debug, Serialize)]
pub(crate) struct Person {
    name: String,
    email: String,
}

/// A product to be.
#[derive(Debug, Serialize)]
pub(crate) struct Good {
    title: String,
    price_cents: i64,
}

/// What happens next in the shop; users and products by their place in the lists of those that were made.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Order { user: usize, product: usize, quantity: i64 },
    Change { product: usize, change: Change },
}

/// What changes about a product.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    Title(String),
    PriceCents(i64),
}

fn pick<'a>(random: &mut impl Rng, words: &[&'a str]) -> &'a str {
    words.choose(random).copied().unwrap_or_default()
}

pub(crate) fn people(random: &mut impl Rng, count: u32) -> Vec<Person> {
    let person = |number: u32| {
        let (first, last) = (pick(random, &FIRST_NAMES), pick(random, &LAST_NAMES));
        let email = format!("{}.{}.{number}@example.com", first.to_lowercase(), last.to_lowercase());
        Person { name: format!("{first} {last}"), email }
    };
    (1..=count).map(person).collect()
}

pub(crate) fn goods(random: &mut impl Rng, count: u32) -> Vec<Good> {
    let good = |_| Good { title: title(random), price_cents: price_cents(random) };
    (0..count).map(good).collect()
}

fn title(random: &mut impl Rng) -> String {
    format!("{}, {}", pick(random, &KINDS), pick(random, &QUALITIES))
}

/// From 0.99 to 199.99.
fn price_cents(random: &mut impl Rng) -> i64 {
    random.random_range(0..200) * 100 + 99
}

/// Who buys, and what is bought: few often, most seldom.
pub(crate) struct Popularity {
    users: WeightedIndex<f64>,
    products: WeightedIndex<f64>,
}

impl Popularity {
    /// # Errors
    /// If there are no users or no products.
    pub(crate) fn new(users: usize, products: usize) -> Result<Self, Error> {
        let skewed = |count: usize| WeightedIndex::new((1..=count).map(|rank| (rank as f64).powf(-SKEW)));
        Ok(Self { users: skewed(users)?, products: skewed(products)? })
    }
}

/// `orders` orders, and the changes between them.
pub(crate) fn steps(random: &mut impl Rng, popularity: &Popularity, orders: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    for number in 1..=orders {
        steps.push(Step::Order {
            user: popularity.users.sample(random),
            product: popularity.products.sample(random),
            quantity: random.random_range(1..=5),
        });
        if number % CHANGE_EVERY == 0 {
            let change = if random.random() {
                Change::Title(title(random))
            } else {
                Change::PriceCents(price_cents(random))
            };
            steps.push(Step::Change { product: popularity.products.sample(random), change });
        }
    }
    steps
}

/// Some of the users: the one who buys most, and others by chance.
pub(crate) fn sample(random: &mut impl Rng, users: &[String]) -> Vec<String> {
    let (most, others) = users.split_at(1.min(users.len()));
    most.iter().chain(others.choose_multiple(random, SAMPLE_MAX - 1)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn all(seed: u64) -> String {
        let mut random = StdRng::seed_from_u64(seed);
        let people = people(&mut random, 30);
        let goods = goods(&mut random, 30);
        let steps = steps(&mut random, &Popularity::new(30, 30).unwrap(), 200);
        format!("{people:?}{goods:?}{steps:?}")
    }

    #[test]
    fn the_same_seed_makes_the_same_data() {
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
    }

    #[test]
    fn a_few_products_sell_most() {
        let mut random = StdRng::seed_from_u64(7);
        let steps = steps(&mut random, &Popularity::new(500, 200).unwrap(), 5_000);
        let mut sold = [0_u32; 200];
        let ordered = steps.iter().filter_map(|step| match step {
            Step::Order { product, .. } => Some(*product),
            Step::Change { .. } => None,
        });
        ordered.for_each(|product| sold[product] += 1);
        let most: u32 = sold[..20].iter().sum();
        assert!((2_500..4_500).contains(&most), "the 20 most popular of 200 sold {most} of 5000");
        assert_eq!(steps.len(), 5_100);
    }

    #[test]
    fn a_change_is_a_body_that_products_takes() {
        let title = serde_json::to_string(&Change::Title("Rope, red".into())).unwrap();
        assert_eq!(title, r#"{"title":"Rope, red"}"#);
        assert_eq!(serde_json::to_string(&Change::PriceCents(5)).unwrap(), r#"{"price_cents":5}"#);
    }
}
