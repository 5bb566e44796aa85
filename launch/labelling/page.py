"""The page for labelling: one HTML file that talks to the server that it came from, and to nobody else."""

from gpt.moderation.taxonomy import Taxonomy
from launch.comparison.scripted_page import scripted_page
from launch.labelling.keys import keyed_categories, page_record


def labelling_page(taxonomy: Taxonomy, *, labeller: str, blur: bool) -> str:
    """The page of one labeller. It holds the taxonomy, and no text to label and no label."""
    data = {
        "labeller": labeller,
        "taxonomy": taxonomy.label,
        "blur": blur,
        "ids": list(taxonomy.ids),
        "categories": [page_record(keyed, taxonomy) for keyed in keyed_categories(taxonomy)],
        "parents": {category.id: category.parent for category in taxonomy.categories},
    }
    return scripted_page("launch.labelling", data, title="Label texts", asks_server=True)
