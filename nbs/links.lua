-- index.ipynb lies above nbs/, where GitHub wants its links to start; on the site every page lies beside the others.
local repo = "https://github.com/fastai-bnfold/fastai-bnfold/blob/main/"

function Link(el)
  if el.target:match("^%u+%.md$") or el.target == "LICENSE" then
    el.target = repo .. el.target
  else
    el.target = el.target:gsub("^nbs/", "")
  end
  return el
end

function Image(el)
  el.src = el.src:gsub("^nbs/", "")
  return el
end
