# The whole chain of a recipe: extract (where it reads a feature store), train, evaluate, score, report. What is there is not made again.
#
#   make -f recipes/chain.mk RECIPE=recipes/music_avqa_compact.yaml TEST=data/music_avqa/test.jsonl
#   make -f recipes/chain.mk RECIPE=recipes/avsd_paper.yaml TEST=data/avsd/test.jsonl LAUNCH="torchrun --nproc-per-node 4 -m pave.cli" SET="training.accumulation=4"
#
# SET: changes to the recipe; where it reads a feature store not of what is extracted, since pave extract takes a recipe as it is. LAUNCH: what trains, default pave. EVAL: options of pave eval. BASE and OUTPUT: those of the recipe. -n shows the commands.
RECIPE ?= $(error give RECIPE=recipes/NAME.yaml)
TEST ?= $(error give TEST=FILE.jsonl, samples to be tested on)
PAVE ?= pave
PYTHON ?= python
LAUNCH ?= $(PAVE)
SET ?=
_value = $(shell $(PYTHON) $(dir $(lastword $(MAKEFILE_LIST)))../scripts/recipe_value.py $(RECIPE) $(1) $(SET))
ifndef OUTPUT
OUTPUT := $(call _value,output)
endif
ifndef BASE
BASE := $(call _value,base.model)
endif
STORE := $(call _value,data.store)
_folder := $(if $(filter /%,$(STORE)),,$(filter-out ./,$(dir $(RECIPE))))
_pictures := $(if $(STORE),$(if $(filter store,$(call _value,data.vision)),base.% data.frames%))
_extracted := $(filter patch=% patch.side_channels=% data.train=% data.eval=% data.root=% data.tasks% data.vision=% $(_pictures),$(SET)) \
	$(foreach change,$(SET),$(if $(or $(findstring .encoder,$(change)),$(findstring .query_source,$(change))),$(change)))
_extracted := $(strip $(_extracted))

.PHONY: chain extract
chain: $(OUTPUT)/report.html

extract:
	$(if $(and $(STORE),$(_extracted)),$(error SET changes what is extracted ($(_extracted)), which pave extract would not see; put it into the recipe))
	$(if $(STORE),$(PAVE) extract $(RECIPE) --store $(_folder)$(STORE),@true)

$(OUTPUT)/patch/patch_config.json: | extract
	$(LAUNCH) train $(RECIPE) $(SET) $(if $(wildcard $(OUTPUT)/checkpoint-*),--resume)

$(OUTPUT)/test/scores.json: $(OUTPUT)/patch/patch_config.json
	$(PAVE) eval $(TEST) --base $(BASE) --patch $(OUTPUT)/patch --out $(OUTPUT)/test $(EVAL)

$(OUTPUT)/report.html: $(OUTPUT)/test/scores.json
	$(PAVE) score $(OUTPUT)/test/predictions.jsonl
	$(PAVE) report $(OUTPUT)/test --out $(OUTPUT)/report.html
