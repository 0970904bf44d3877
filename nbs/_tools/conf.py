"Sphinx's settings for the pages that pages.py prepares."
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project, author, copyright = "fastai_bnfold", "fastai_bnfold contributors", "fastai_bnfold contributors"
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "deflist"]
myst_all_links_external = True  # pages.py has made every link final
suppress_warnings = ["myst.header"]
html_theme, html_title, html_math_renderer = "furo", "fastai_bnfold", "mathml"
html_static_path, html_css_files = ["static"], ["site.css"]
html_show_sourcelink = html_copy_source = html_show_copyright = html_use_index = False
html_theme_options = {"source_repository": "https://github.com/fastai-bnfold/fastai-bnfold/", "source_branch": "main",
                      "source_directory": "nbs/", "top_of_page_buttons": []}

def math(self, node):
    "Formulas as MathML, which browsers draw by themselves: no script from elsewhere"
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode

def setup(app): app.add_html_math_renderer("mathml", (math, None), (math, None))
